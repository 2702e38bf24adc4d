"""The worker with vLLM's real engine, against Hugging Face's forward pass on the same tokens, in float32.

On a GPU (`make test-gpu`, not yet run) the engine is another program: its core a process, its weights files, its steps
compiled and asynchronous; and it computes in bfloat16. One engine for the whole file. Each test publishes what it
needs; the last one leaves the worker unusable.
"""

import asyncio
import io
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from records.manifest import Bucket, Manifest, TensorInfo, checksum
from records.samples import PolicyVersion, Prompt, Sample, SampleGroup, Score
from rollout.actor import RolloutWorker, WeightUpdateError
from rollout.config import RolloutConfig
from tasks.tvr.language.gold import Gold
from tests.rollout.fresh_engine import answers_of_a_fresh_engine

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

TEMPERATURE = 0.8
DTYPE = {"cpu": torch.float32, "gpu": torch.bfloat16}
TOLERANCE = {"cpu": 1e-4, "gpu": 0.3}
"""Nats. bfloat16 rounds a logit of 16 by up to 0.06, and every layer before it."""
START = PolicyVersion(0)
Weights = dict[str, torch.Tensor]


@dataclass
class Served:
    """A worker and, for each version that it was given, the weights."""

    worker: RolloutWorker
    model: Any
    processor: Any
    device: str
    version: PolicyVersion = START
    weights: dict[PolicyVersion, Weights] = field(default_factory=dict)

    def perturbed(self, seed: int) -> Weights:
        """The first version with each matrix, those of the vision tower too, moved by 30 % of its spread."""
        generator = torch.Generator().manual_seed(seed)
        weights = {}
        for name, tensor in self.weights[START].items():
            spread = float(tensor.std()) if tensor.ndim > 1 else 0.3
            moved = tensor + 0.3 * spread * torch.randn(tensor.shape, generator=generator)
            weights[name] = moved.to(DTYPE[self.device])
        return weights

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.device]

    async def sample(self, prompt: Prompt, seed: int) -> SampleGroup:
        return (await self.worker.sample(prompt, seed)).group

    async def publish(self, seed: int, part: str = "all") -> None:
        """The next version, which differs from this one in all or in the *language* model alone."""
        weights = self.perturbed(seed)
        if part == "language":
            weights |= {name: old for name, old in self.weights[self.version].items() if "visual" in name}
        await self.send(weights)

    async def send(self, weights: Weights) -> None:
        """As the next version, whose other tensors are those of this one."""
        is_whole = len(weights) == len(self.weights[START])
        self.version = PolicyVersion(self.version + 1)
        await self.worker.receive(*packed(self.version, weights, is_whole))
        self.weights[self.version] = self.weights[PolicyVersion(self.version - 1)] | weights

    def always_had(self, names: set[str]) -> None:
        """Go on as a worker whose every version consisted of *names*."""
        infos = tuple(TensorInfo(name=name, dtype="float32", shape=(), checksum="") for name in sorted(names))
        self.worker._manifest = Manifest(version=self.version, buckets=(infos,), is_whole=False)

    def max_difference(self, group: SampleGroup) -> float:
        """Between the engine's log-probs and those of the version that each token claims."""
        largest, compared = 0.0, 0
        for sample in group.samples:
            for span in sample.trace.versions:
                expected = self.logprobs(group.prompt, sample, span.version)
                end = min(span.end, len(expected))
                if end > span.start:
                    gap = np.abs(expected[span.start : end] - sample.trace.logprobs[span.start : end])
                    largest, compared = max(largest, float(gap.max())), compared + end - span.start
        assert compared > 20
        return largest

    @torch.no_grad()
    def logprobs(self, prompt: Prompt, sample: Sample, version: PolicyVersion) -> np.ndarray:
        """Teacher-forced. Ends before the first sampled picture placeholder, which transformers takes for a picture."""
        self.model.load_state_dict(self.weights[version], strict=False)
        text = self.processor.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
        pictures = [Image.open(io.BytesIO(encoded)) for encoded in prompt.pictures]
        inputs = self.processor(text=[text], images=pictures, return_tensors="pt")
        trace = sample.trace
        assert inputs["input_ids"][0].tolist() == trace.prompt_token_ids.tolist()
        token_ids = torch.tensor(trace.token_ids, dtype=torch.int64)
        placeholders = self.processor.tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])
        for at in torch.isin(token_ids, torch.tensor(placeholders)).nonzero().flatten()[:1]:
            token_ids = token_ids[: int(at)]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token_ids[None]], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        padding = (0, len(token_ids))
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], padding)
        logits = self.model(**inputs).logits[0, len(trace.prompt_token_ids) - 1 : -1] / TEMPERATURE
        return torch.log_softmax(logits, dim=-1).gather(1, token_ids[:, None])[:, 0].numpy()


def packed(version: int, weights: Weights, is_whole: bool = True) -> tuple[Manifest, Bucket, Bucket]:
    """Two buckets that part a layer."""
    buckets = []
    names = list(weights)
    for half in (names[: len(names) // 2], names[len(names) // 2 :]):
        buckets.append({name: weights[name].contiguous().reshape(-1).view(torch.uint8).numpy() for name in half})
    infos = tuple(
        tuple(
            TensorInfo(
                name=name,
                dtype=_name(weights[name].dtype),
                shape=tuple(weights[name].shape),
                checksum=checksum(content),
            )
            for name, content in bucket.items()
        )
        for bucket in buckets
    )
    return Manifest(version=PolicyVersion(version), buckets=infos, is_whole=is_whole), buckets[0], buckets[1]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Payer:
    """Pays the number of tokens."""

    async def score(self, gold: Gold, sample: Sample) -> Score:
        total = float(len(sample.trace.token_ids))
        return Score(total=total, parts={"length": total}, judgement=None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(policy_folder: Path, device: str) -> AsyncIterator[Served]:
    config = RolloutConfig(
        samples_per_prompt=8,
        max_answer_tokens=48,
        temperature=TEMPERATURE,
        dtype=_name(DTYPE[device]),
        max_model_len=256,
        max_num_seqs=12,
        kv_cache_mib=16,
        gpu_memory_utilization=0.3,  # a second engine beside it
    )
    worker = RolloutWorker(config, str(policy_folder), "test", Payer())
    assert await worker.ready() == "test"
    model = AutoModelForImageTextToText.from_pretrained(policy_folder, dtype=torch.float32).eval()
    first = {name: parameter.detach().to(DTYPE[device], copy=True) for name, parameter in model.named_parameters()}
    yield Served(
        worker=worker,
        model=model,
        processor=AutoProcessor.from_pretrained(policy_folder),
        device=device,
        weights={START: first},
    )
    await worker.shutdown()


def common_start(first: Sample, second: Sample) -> int:
    """Tokens before the first that differs."""
    shorter = min(len(first.trace.token_ids), len(second.trace.token_ids))
    same = first.trace.token_ids[:shorter] == second.trace.token_ids[:shorter]
    return shorter if same.all() else int(same.argmin())


def token_ids(group: SampleGroup) -> list[list[int]]:
    return [sample.trace.token_ids.tolist() for sample in group.samples]


async def test_a_group_has_its_samples_with_end_token_and_text(
    served: Served, make_prompt: Callable[[int], Prompt]
) -> None:
    group = await served.sample(make_prompt(1), seed=3)
    assert [sample.id for sample in group.samples] == [f"1/basic/center#3.{index}" for index in range(8)]
    tokenizer = served.processor.tokenizer
    for sample in group.samples:
        trace = sample.trace
        assert (trace.token_ids.dtype, trace.logprobs.dtype) == (np.int32, np.float32)
        assert (trace.token_ids[-1] == tokenizer.eos_token_id) == (trace.finish == "stop")
        assert trace.finish == "stop" or len(trace.token_ids) == 48
        assert sample.text == tokenizer.decode(trace.token_ids, skip_special_tokens=True)
    assert {sample.trace.finish for sample in group.samples} == {"stop", "length"} or served.device == "gpu"
    assert len({tuple(ids) for ids in token_ids(group)}) == 8


async def test_a_group_tells_who_sampled_it_and_when(served: Served, make_prompt: Callable[[int], Prompt]) -> None:
    began = time.time()
    scored = await served.worker.sample(make_prompt(1), seed=3)
    assert scored.origin is not None
    assert scored.origin.worker == served.worker.worker_id
    moments = [scored.origin.asked]
    for sample, scored_at in zip(scored.group.samples, scored.origin.scored, strict=True):
        assert sample.times is not None
        assert began <= scored.origin.asked < sample.times.first_token <= sample.times.ended <= scored_at
        moments.append(sample.times.first_token)
        if len(sample.trace.token_ids) > 8:  # more than one step of the engine
            assert sample.times.first_token < sample.times.ended
    # Siblings begin together, before any of them ends.
    assert max(moments[1:]) < min(sample.times.ended for sample in scored.group.samples if sample.times)


async def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(
    served: Served, make_prompt: Callable[[int], Prompt]
) -> None:
    groups = [await served.sample(make_prompt(1), seed=seed) for seed in (3, 3, 4)]
    first, again, other = map(token_ids, groups)
    assert first == again
    assert not {tuple(ids) for ids in first} & {tuple(ids) for ids in other}


async def test_a_greedy_answer_is_always_the_same(served: Served, make_prompt: Callable[[int], Prompt]) -> None:
    first, again = [await served.worker.answer(make_prompt(1)) for _ in range(2)]
    assert first.trace.token_ids.tolist() == again.trace.token_ids.tolist()


async def test_a_prompt_that_is_too_long_is_refused_by_its_id_and_the_worker_goes_on(
    served: Served, make_prompt: Callable[[int], Prompt]
) -> None:
    prompt, buffer = make_prompt(1), io.BytesIO()
    Image.new("RGB", (320, 240)).save(buffer, format="PNG")
    # At 24 pixels a token: 13 * 10 = 130 tokens a picture.
    large = replace(prompt, id="8/view/left", images=(buffer.getvalue(),) * 2)
    with pytest.raises(ValueError, match=r"prompt 8/view/left has \d+ tokens with its pictures, and max_model_len 256"):
        await served.worker.answer(large)
    system, user = prompt.messages
    words = {"type": "text", "text": "red " * 300}
    wordy = replace(prompt, id="9/view/left", messages=(system, {**user, "content": [*user["content"], words]}))
    with pytest.raises(ValueError, match=r"prompt 9/view/left cannot be asked: .*256"):
        await served.worker.answer(wordy)
    assert (await served.worker.answer(prompt)).text


async def test_logprobs_are_the_learners_before_and_after_a_publish(
    served: Served, make_prompt: Callable[[int], Prompt]
) -> None:
    before = await served.sample(make_prompt(1), seed=3)
    await served.publish(seed=1)
    after = await served.sample(make_prompt(1), seed=3)
    assert before.oldest_version == served.version - 1
    assert after.oldest_version == served.version
    assert served.max_difference(before) < served.tolerance
    assert served.max_difference(after) < served.tolerance


async def test_a_version_that_comes_by_files_is_the_same(
    served: Served, make_prompt: Callable[[int], Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does where the engine's workers are processes of their own."""
    monkeypatch.setattr(served.worker._engine, "_is_in_process", False)
    await served.publish(seed=2)
    group = await served.sample(make_prompt(1), seed=3)
    assert group.oldest_version == served.version
    assert served.max_difference(group) < served.tolerance


async def test_an_old_version_is_refused_and_the_worker_goes_on(
    served: Served, make_prompt: Callable[[int], Prompt]
) -> None:
    """Its own it takes again: after a fault the learner may have made it anew."""
    await served.publish(seed=1)
    with pytest.raises(ValueError, match=f"version {served.version - 1} is older than {served.version}"):
        await served.worker.receive(*packed(served.version - 1, served.weights[START]))
    await served.worker.receive(*packed(served.version, served.weights[served.version]))
    group = await served.sample(make_prompt(2), seed=0)
    assert served.max_difference(group) < served.tolerance


async def test_answers_in_flight_go_on_under_the_new_version(
    served: Served, make_prompt: Callable[[int], Prompt]
) -> None:
    """Publishes while 16 answers run or wait for one of the 12 places, and asks for new ones after each publish."""
    first = served.version
    groups = [asyncio.create_task(served.sample(make_prompt(number), seed=0)) for number in (3, 4)]
    for number in (5, 6):
        await asyncio.sleep(0.1)  # lets the engine make some tokens; right however many it makes
        await served.publish(seed=number)
        groups.append(asyncio.create_task(served.sample(make_prompt(number), seed=0)))
    while not groups[-1].done():
        await asyncio.sleep(0.1)
        if served.version < first + 6:
            await served.publish(seed=served.version)
    done = [await group for group in groups]
    assert any(len(sample.trace.versions) > 1 for group in done for sample in group.samples)
    for group in done:
        assert served.max_difference(group) < served.tolerance


@pytest.mark.parametrize(("part", "seed"), [("all", 11), ("language", 12)])
async def test_after_an_update_no_cache_is_left_of_the_old_weights(
    part: str, seed: int, served: Served, make_prompt: Callable[[int], Prompt], tmp_path: Path
) -> None:
    """The same pictures are asked before and after, and a fresh engine on the new weights answers the same."""
    prompts = [make_prompt(8), make_prompt(9)]
    before = [await served.worker.answer(prompt) for prompt in prompts]
    await served.publish(seed, part)
    after = [await served.worker.answer(prompt) for prompt in prompts]

    served.model.load_state_dict(served.weights[served.version], strict=False)
    served.model.save_pretrained(tmp_path)
    served.processor.save_pretrained(tmp_path)
    fresh = await asyncio.to_thread(answers_of_a_fresh_engine, served.worker.config, tmp_path, prompts)
    for old, new, expected in zip(before, after, fresh, strict=True):
        assert new.trace.token_ids.tolist() != old.trace.token_ids.tolist()
        same = common_start(new, expected)
        # Greedy answers of two engines in bfloat16 part where two tokens are as likely.
        assert same == len(new.trace.token_ids) == len(expected.trace.token_ids) or (
            served.device == "gpu" and same > 4
        )
        atol = 1e-5 if served.device == "cpu" else served.tolerance
        np.testing.assert_allclose(new.trace.logprobs[:same], expected.trace.logprobs[:same], rtol=0, atol=atol)


@pytest.mark.parametrize("by", ["arrays", "files"])
async def test_after_versions_of_adapted_layers_alone_logprobs_are_those_of_the_merged_weights(
    by: str, served: Served, make_prompt: Callable[[int], Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings, norms and the patches' convolution are not sent, and keep what earlier versions gave them."""
    monkeypatch.setattr(served.worker._engine, "_is_in_process", by == "arrays")
    linear = {name for name, module in served.model.named_modules() if isinstance(module, torch.nn.Linear)}
    names = {name for name in served.weights[START] if name.rpartition(".")[0] in linear}
    assert 60 < len(names) < len(served.weights[START]) - 10
    served.always_had(names)
    for seed in (21, 22):
        weights = served.perturbed(seed)
        await served.send({name: weights[name] for name in names})
        group = await served.sample(make_prompt(1), seed=3)
        assert group.oldest_version == served.version
        assert served.max_difference(group) < served.tolerance
    served.always_had(set(served.weights[START]))


async def test_after_versions_of_the_language_model_alone_pictures_are_seen_as_before(
    served: Served, make_prompt: Callable[[int], Prompt]
) -> None:
    """The tied head, which no version holds, computes with the new embedding."""
    names = {name for name in served.weights[START] if "visual" not in name}
    served.always_had(names)
    for seed in (23, 24):
        weights = served.perturbed(seed)
        await served.send({name: weights[name] for name in names})
        group = await served.sample(make_prompt(1), seed=3)
        assert served.max_difference(group) < served.tolerance
    served.always_had(set(served.weights[START]))


async def test_after_an_incomplete_update_the_worker_refuses_everything(
    served: Served, make_prompt: Callable[[int], Prompt]
) -> None:
    served.always_had(set(served.weights[START]) - {"model.visual.merger.mlp.0.weight"})
    weights = served.perturbed(seed=0)
    del weights["model.visual.merger.mlp.0.weight"]
    in_flight = asyncio.create_task(served.sample(make_prompt(7), seed=0))
    await asyncio.sleep(0)
    next_version = PolicyVersion(served.version + 1)
    with pytest.raises(WeightUpdateError, match=r"1 layers only part of their weights, such as visual\.merger\.mlp\.0"):
        await served.worker.receive(*packed(next_version, weights))
    for refused in (
        in_flight,
        served.sample(make_prompt(1), seed=0),
        served.worker.receive(*packed(next_version, served.perturbed(seed=0))),
    ):
        with pytest.raises(WeightUpdateError, match="unusable"):
            await refused
