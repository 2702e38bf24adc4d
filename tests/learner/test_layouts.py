"""Shared rows against the reference layout and against transformers' own forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import learner.head
from learner.batch import BatchRow, answer_logprobs, collate, lay_out_prompt, one_sample_a_row, shared_prompt
from learner.config import LearnerConfig
from learner.encode import PictureEncoder
from learner.packing import GroupLengths, split_group
from learner.policy import load_policy
from records.samples import SampleGroup
from tiny_policy.make import build_config

TEMPERATURE = 0.8
CASES: dict[str, list[dict[str, Any]]] = {
    "one answer": [{"lengths": [7]}],
    "one token": [{"lengths": [1]}],
    "unequal answers": [{"lengths": [1, 12, 5, 1]}],
    "pictures of different sizes": [{"lengths": [3, 9], "sizes": ((96, 48), (48, 80))}],
    "packed together": [
        {"lengths": [6, 1, 4], "objects": 1},
        {"lengths": [2], "sizes": ((64, 64), (32, 48))},
        {"lengths": [17, 3], "objects": 2, "sizes": ((112, 80), (112, 80))},
    ],
    "no picture": [{"lengths": [4, 2], "sizes": ()}],
    "one picture": [{"lengths": [4, 2], "sizes": ((96, 48),)}],
    "five pictures": [{"lengths": [4, 2], "sizes": ((96, 48), (48, 48), (64, 80), (32, 32), (48, 96))}],
    "with and without pictures": [
        {"lengths": [4, 2], "sizes": ()},
        {"lengths": [3, 5]},
        {"lengths": [1, 6], "sizes": ()},
        {"lengths": [2], "sizes": ((64, 64),)},
    ],
}


def draw_case(seed: int) -> list[dict[str, Any]]:
    """One to three groups of 1 to 16 answers of 1 to 20 tokens, every picture of its own size."""
    rng = np.random.default_rng(seed)
    sizes = lambda: tuple(16 * int(side) for side in rng.integers(2, 7, 2))  # noqa: E731
    return [
        {"lengths": rng.integers(1, 21, rng.integers(1, 17)).tolist(), "sizes": (sizes(), sizes())}
        for _ in range(rng.integers(1, 4))
    ]


CASES |= {f"random {seed}": draw_case(seed) for seed in range(12)}


@pytest.fixture(scope="session")
def encoder(policy_folder: str) -> PictureEncoder:
    return PictureEncoder(policy_folder)


def build_rows(policy: Any, encoder: PictureEncoder, groups: Sequence[SampleGroup], row_tokens: int) -> list[BatchRow]:
    rows = []
    for index, group in enumerate(groups):
        pictures = encoder.encode(group.prompt, shared_prompt(group))
        prompted = lay_out_prompt(group, pictures, encoder.image_token_id, policy.model.get_rope_index)
        answers = tuple(sample.trace.token_ids for sample in group.samples)
        lengths = GroupLengths(group=index, prompt=len(prompted.prompt), answers=tuple(map(len, answers)))
        for row in split_group(lengths, row_tokens):
            rows.append(BatchRow(prompted=prompted, answers=tuple(answers[sample] for sample in row.samples)))
    return rows


def run(policy: Any, logprobs: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Log-probs and the gradient of a sum of them with uneven weights, all parameters in one vector."""
    policy.zero_grad()
    (logprobs * torch.linspace(-1, 1.5, len(logprobs))).mean().backward()
    gradients = [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in policy.parameters()
    ]
    gradient = torch.cat([part.flatten() for part in gradients])
    return logprobs.detach().numpy(), gradient.numpy()


def transformers_logprobs(policy: Any, encoder: PictureEncoder, groups: Sequence[SampleGroup]) -> torch.Tensor:
    """One sample at a time through the model's own forward pass: its own mask, its own positions, all logits."""
    found = []
    for group in groups:
        pictures = encoder.encode(group.prompt, shared_prompt(group))
        for sample in group.samples:
            ids = np.concatenate([sample.trace.prompt_token_ids, sample.trace.token_ids]).astype(np.int64)
            input_ids = torch.from_numpy(ids)[None]
            logits = policy(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                mm_token_type_ids=(input_ids == encoder.image_token_id).int(),
                pixel_values=pictures.pixel_values if len(pictures.grid_thw) else None,
                image_grid_thw=pictures.grid_thw if len(pictures.grid_thw) else None,
            ).logits[0]
            table = torch.log_softmax(logits / TEMPERATURE, dim=-1)
            start = len(sample.trace.prompt_token_ids)
            found += [table[at - 1, ids[at]] for at in range(start, len(ids))]
    return torch.stack(found)


@pytest.mark.parametrize("case", CASES)
def test_all_layouts_give_the_same_logprobs_and_gradients(
    case: str, policy: Any, encoder: PictureEncoder, make_group: Callable[..., Any]
) -> None:
    groups = [make_group(seed, **arguments).group for seed, arguments in enumerate(CASES[case])]
    rows = build_rows(policy, encoder, groups, row_tokens=10_000)
    split = build_rows(policy, encoder, groups, row_tokens=len(rows[0].prompted.prompt) + 20)
    layouts = [collate(rows), collate(split), collate(one_sample_a_row(rows))]
    shared, *others = [run(policy, answer_logprobs(policy, batch, TEMPERATURE)) for batch in layouts]
    policy.set_attn_implementation("sdpa")
    plain = run(policy, transformers_logprobs(policy, encoder, groups))
    for other in (*others, plain):
        np.testing.assert_allclose(shared[0], other[0], atol=1e-5, rtol=0)
        np.testing.assert_allclose(shared[1], other[1], atol=1e-5, rtol=0)
    assert np.abs(plain[1]).max() > 0.01, "gradients too small for the comparison to mean anything"


def test_fewer_key_heads_than_query_heads(
    make_group: Callable[..., Any], encoder: PictureEncoder, tmp_path: Path
) -> None:
    config = build_config(encoder.processor.tokenizer).to_dict()
    config["text_config"]["num_key_value_heads"] = 2
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config)).save_pretrained(tmp_path)
    policy = load_policy(LearnerConfig(), str(tmp_path), torch.device("cpu"))
    groups = [make_group(0, [5, 9, 2]).group]
    batch = collate(build_rows(policy, encoder, groups, row_tokens=10_000))
    shared = run(policy, answer_logprobs(policy, batch, TEMPERATURE))
    policy.set_attn_implementation("sdpa")
    plain = run(policy, transformers_logprobs(policy, encoder, groups))
    np.testing.assert_allclose(shared[0], plain[0], atol=1e-5, rtol=0)
    np.testing.assert_allclose(shared[1], plain[1], atol=1e-5, rtol=0)


def test_logits_in_parts_are_the_same(
    policy: Any, encoder: PictureEncoder, make_group: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = collate(build_rows(policy, encoder, [make_group(0, [5, 9, 2]).group], row_tokens=10_000))
    whole = run(policy, answer_logprobs(policy, batch, TEMPERATURE))
    monkeypatch.setattr(learner.head, "LOGITS_AT_ONCE", 128 * 5)  # a vocabulary of 128: five tokens at a time
    parts = run(policy, answer_logprobs(policy, batch, TEMPERATURE))
    np.testing.assert_allclose(parts[0], whole[0], atol=1e-6, rtol=0)
    np.testing.assert_allclose(parts[1], whole[1], atol=1e-6, rtol=0)


def test_a_sampled_picture_placeholder_is_a_token_like_any_other(
    policy: Any, encoder: PictureEncoder, make_group: Callable[..., Any]
) -> None:
    group = make_group(0, [4, 3]).group
    first, second = group.samples
    odd = replace(first, trace=replace(first.trace, token_ids=np.array([9, encoder.image_token_id, 9, 9], np.int32)))
    rows = build_rows(policy, encoder, [replace(group, samples=(odd, second))], row_tokens=10_000)
    plain_rows = build_rows(policy, encoder, [group], row_tokens=10_000)
    with torch.no_grad():
        shared = answer_logprobs(policy, collate(rows), TEMPERATURE)
        per_sample = answer_logprobs(policy, collate(one_sample_a_row(rows)), TEMPERATURE)
        sibling = answer_logprobs(policy, collate(plain_rows), TEMPERATURE)[4:]
    np.testing.assert_allclose(shared, per_sample, atol=1e-5, rtol=0)
    np.testing.assert_allclose(shared[4:], sibling, atol=1e-5, rtol=0)


def test_a_batch_moves_whole(policy: Any, encoder: PictureEncoder, make_group: Callable[..., Any]) -> None:
    batch = collate(build_rows(policy, encoder, [make_group(0, [3, 4]).group], row_tokens=10_000))
    moved = batch.to(torch.device("meta"))
    tensors = [value for value in vars_of(moved) if isinstance(value, torch.Tensor)]
    assert len(tensors) == 7 + 3  # and three of its one span
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def vars_of(batch: Any) -> list[Any]:
    own = [getattr(batch, name) for name in batch.__slots__]
    return own + [getattr(span, name) for span in batch.spans for name in span.__slots__]


def test_a_row_holds_prompt_and_pictures_once(
    policy: Any, encoder: PictureEncoder, make_group: Callable[..., Any]
) -> None:
    group = make_group(0, [3, 4, 5]).group
    batch = collate(build_rows(policy, encoder, [group], row_tokens=10_000))
    assert batch.input_ids.shape == (1, len(shared_prompt(group)) + 3 + 4 + 5)
    assert len(batch.image_grid_thw) == 2


def test_samples_of_different_prompts_are_refused(make_group: Callable[..., Any]) -> None:
    first, second = make_group(0, [3]).group, make_group(1, [3], objects=2).group
    with pytest.raises(ValueError, match="other prompt tokens than its siblings"):
        shared_prompt(SampleGroup(prompt=first.prompt, samples=first.samples + second.samples))


def test_pictures_that_do_not_fit_the_prompt_are_refused(
    encoder: PictureEncoder, make_group: Callable[..., Any]
) -> None:
    # 72x48 at 24 pixels a token: 3 * 2 = 6 tokens a picture; 96x48: 8.
    sizes = ((72, 48), (72, 48)), ((96, 48), (72, 48))
    small, large = (make_group(number, [1], sizes=pair).group for number, pair in enumerate(sizes))
    with pytest.raises(ValueError, match="holds 12 image tokens and its pictures need 14"):
        encoder.encode(large.prompt, shared_prompt(small))


def test_a_picture_that_cannot_be_read_is_refused_by_prompt_id(
    encoder: PictureEncoder, make_group: Callable[..., Any]
) -> None:
    group = make_group(7, [1]).group
    first, second = group.prompt.pictures
    torn, strange = (replace(group.prompt, images=(first, other)) for other in (second[:-1000], b"no picture"))
    with pytest.raises(ValueError, match="prompt 7/basic/center: its picture 2 cannot be decoded"):
        encoder.encode(torn, shared_prompt(group))
    encoder.tokenise(torn)  # reads sizes alone: a whole data set is measured before a run
    with pytest.raises(ValueError, match="prompt 7/basic/center: its picture 2 is no picture; it must be a PNG"):
        encoder.tokenise(strange)
