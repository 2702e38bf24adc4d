"""STAR-SFT: the right answers as samples to imitate, and the loss of imitating them."""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from learner.encode import PictureEncoder
from learner.sft import make_example
from records.samples import Prompt, ScoredGroup
from tasks.tvr.language.answer import Answer, parse
from tasks.tvr.language.scene import Transformation
from tasks.tvr.task import TASK
from tests.learner.plain_step import gradient_difference

CHANGES = (
    (),
    (Transformation(index=0, attribute="color", value="blue"),),
    (
        Transformation(index=1, attribute="size", value="large"),
        Transformation(index=2, attribute="material", value="glass"),
    ),
)
CONFIG: dict[str, Any] = {"learning_rate": 1e-3, "max_grad_norm": 1000.0, "row_tokens": 512}


@pytest.fixture(scope="module")
def encoder(policy_folder: str) -> PictureEncoder:
    return PictureEncoder(policy_folder)


@pytest.fixture(scope="module")
def groups(make_group: Callable[..., ScoredGroup]) -> tuple[ScoredGroup, ...]:
    """Prompts with no, one and two changes; that the groups have samples of their own does not matter here."""
    sizes = (((64, 48), (64, 48)), ((96, 48), (48, 80)), ((112, 80), (112, 80)))
    made = [make_group(number, [1], sizes=pair) for number, pair in enumerate(sizes)]
    return tuple(with_changes(scored, changes) for scored, changes in zip(made, CHANGES, strict=True))


def with_changes(scored: ScoredGroup, changes: tuple[Transformation, ...]) -> ScoredGroup:
    prompt = scored.group.prompt
    gold = replace(prompt.gold, setting="event", transformations=changes)
    return replace(scored, group=replace(scored.group, prompt=replace(prompt, gold=gold)))


def with_pictures(prompt: Prompt, sizes: Sequence[tuple[int, int]]) -> Prompt:
    def draw(size: tuple[int, int]) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", size).save(buffer, format="PNG")
        return buffer.getvalue()

    return replace(prompt, images=(draw(sizes[0]), draw(sizes[1])))


@pytest.mark.parametrize(
    "sizes",
    [
        ((64, 48), (64, 48)),
        ((112, 80), (48, 112)),  # the second stands upright
        ((33, 71), (100, 57)),  # no multiples of a patch: the processor resizes them
        ((17, 19), (64, 64)),  # smaller than the processor allows
        ((640, 480), (320, 240)),  # larger
        ((16, 320), (1000, 24)),  # long and thin
    ],
    ids=str,
)
def test_tokens_are_those_of_the_whole_processor(
    sizes: Sequence[tuple[int, int]], encoder: PictureEncoder, groups: tuple[ScoredGroup, ...]
) -> None:
    prompt = with_pictures(groups[0].group.prompt, sizes)
    text = encoder.processor.apply_chat_template(list(prompt.messages), add_generation_prompt=True, tokenize=False)
    pictures = [Image.new("RGB", size) for size in sizes]
    expected = encoder.processor(text=[text], images=pictures, return_tensors="np")["input_ids"][0]
    found = encoder.tokenise(prompt)
    assert found.dtype == np.int32
    assert found.tolist() == expected.tolist()
    encoder.encode(prompt, found)  # raises unless the pictures need as many image tokens


@pytest.mark.parametrize("number", range(len(CHANGES)), ids=["no change", "one change", "two changes"])
def test_an_example_is_the_right_answer_and_the_end(
    number: int, encoder: PictureEncoder, groups: tuple[ScoredGroup, ...]
) -> None:
    prompt = groups[number].group.prompt
    (sample,) = make_example(prompt, TASK.right_answer(prompt.gold, "answer"), encoder).samples
    assert parse(sample.text) == Answer(triplets=CHANGES[number], reasoning="")
    tokenizer = encoder.processor.tokenizer
    *answer, end = sample.trace.token_ids.tolist()
    assert end == tokenizer.eos_token_id
    assert end not in answer
    written = parse(tokenizer.decode(answer))
    assert isinstance(written, Answer)
    assert written.triplets == CHANGES[number]
    assert sample.trace.prompt_token_ids.tolist() == encoder.tokenise(prompt).tolist()


def test_with_reasoning_an_example_goes_through_the_objects_first(
    encoder: PictureEncoder, groups: tuple[ScoredGroup, ...]
) -> None:
    prompt = groups[2].group.prompt
    (sample,) = make_example(prompt, TASK.right_answer(prompt.gold, "reasoning"), encoder).samples
    answer = parse(sample.text)
    assert isinstance(answer, Answer)
    assert sorted(answer.triplets) == sorted(CHANGES[2])
    scene = prompt.gold.scene
    size, material = scene[1].size, scene[2].material
    assert f"1 {size} large 1.size.large {scene[1].color} {scene[1].color}" in answer.reasoning
    assert f"{material} glass 2.material.glass {scene[2].shape} {scene[2].shape}" in answer.reasoning
    assert encoder.processor.tokenizer.decode(sample.trace.token_ids).startswith("<think> 0 ")


def imitate_in_plain_torch(folder: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """The mean of -log-prob over all answer tokens of all prompts, with transformers' own forward pass, and its
    gradient.
    """
    policy = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="sdpa")
    encoder = PictureEncoder(folder)
    terms = []
    for prompt in prompts:
        trace = make_example(prompt, TASK.right_answer(prompt.gold, "answer"), encoder).samples[0].trace
        pictures = encoder.encode(prompt, trace.prompt_token_ids)
        ids = torch.from_numpy(np.concatenate([trace.prompt_token_ids, trace.token_ids]).astype(np.int64))[None]
        inputs = {"pixel_values": pictures.pixel_values, "image_grid_thw": pictures.grid_thw}
        logits = policy(input_ids=ids, mm_token_type_ids=(ids == encoder.image_token_id).int(), **inputs).logits[0]
        start = len(trace.prompt_token_ids)
        terms += [-logits[t - 1].log_softmax(-1)[ids[0, t]] for t in range(start, ids.shape[1])]
    loss = torch.stack(terms).mean()
    loss.backward()
    gradient = {name: parameter.grad for name, parameter in policy.named_parameters()}
    return {"loss": float(loss.detach()), "gradient": gradient, "tokens": len(terms)}


@pytest.fixture(scope="module")
def reference(policy_folder: str, groups: tuple[ScoredGroup, ...]) -> dict[str, Any]:
    return imitate_in_plain_torch(policy_folder, [scored.group.prompt for scored in groups])


@pytest.fixture(scope="module")
def imitated(run_ranks: Callable[..., Any], groups: tuple[ScoredGroup, ...]) -> dict[int, list[dict[str, Any]]]:
    """Five supervised steps on the same prompts: by number of ranks, the result of each rank."""
    job = {"config": CONFIG, "steps": [groups] * 5, "imitate": True}
    return {ranks: [result["imitate"] for result in run_ranks(ranks, {"imitate": job})] for ranks in (1, 2)}


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_loss_is_the_mean_over_all_answer_tokens_of_the_step(
    ranks: int, imitated: dict[int, list[dict[str, Any]]], reference: dict[str, Any]
) -> None:
    for result in imitated[ranks]:
        first = result["reports"][0]
        assert first.loss == pytest.approx(reference["loss"], rel=1e-5)
        assert first.stats["entropy"] == pytest.approx(reference["loss"], rel=1e-5)
        assert first.tokens == reference["tokens"]
        assert gradient_difference(result["gradient"], reference["gradient"]) < 1e-5


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_step_on_the_same_prompts_lowers_the_loss(ranks: int, imitated: dict[int, list[dict[str, Any]]]) -> None:
    reports = imitated[ranks][0]["reports"]
    assert [report.version for report in reports] == [1, 2, 3, 4, 5]
    losses = [report.loss for report in reports]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]
