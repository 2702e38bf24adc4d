"""Prompts with 0, 1, 2 and 5 pictures: vLLM's engine and the learner see the same, and all of them."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from PIL import Image

from learner.batch import BatchRow, answer_logprobs, collate, lay_out_prompt, shared_prompt
from learner.config import LearnerConfig
from learner.encode import PictureEncoder
from learner.policy import load_policy
from records.samples import PolicyVersion, Prompt, SampleGroup, Score
from rollout.actor import RolloutWorker
from rollout.config import RolloutConfig
from tests.learner.made_groups import ask_about
from tests.rollout.loud_policy import write_loud_policy

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
COUNTS = (0, 1, 2, 5)


class Unpaid:
    async def score(self, gold: Any, sample: Any) -> Score:
        return Score(total=0.0, parts={}, judgement=None)


def noise(seed: int) -> bytes:
    """A PNG of random pixels, every one of another size."""
    shape = (48 + 24 * (seed % 3), 72 + 24 * (seed % 2), 3)
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def make_prompt(count: int) -> Prompt:
    return Prompt(id=f"{count} pictures", images=tuple(map(noise, range(count))), messages=ask_about(count), gold=None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    write_loud_policy(folder)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(model: Path) -> AsyncIterator[RolloutWorker]:
    config = RolloutConfig(
        dtype="float32", max_model_len=512, max_answer_tokens=24, kv_cache_mib=64, samples_per_prompt=4, max_pictures=5
    )
    started = RolloutWorker(config, str(model), "pictures", Unpaid())
    await started.ready()
    yield started
    await started.shutdown()


@pytest.fixture(scope="module")
def learner(model: Path) -> Callable[[SampleGroup], list[np.ndarray]]:
    """What the learner gives the tokens of a group, in one pass of a shared row."""
    policy = load_policy(LearnerConfig(dtype="float32"), str(model), torch.device("cpu"))
    encoder = PictureEncoder(model)

    def logprobs(group: SampleGroup) -> list[np.ndarray]:
        pictures = encoder.encode(group.prompt, shared_prompt(group))
        prompted = lay_out_prompt(group, pictures, encoder.image_token_id, policy.model.get_rope_index)
        answers = tuple(sample.trace.token_ids for sample in group.samples)
        with torch.no_grad():
            found = answer_logprobs(policy, collate([BatchRow(prompted=prompted, answers=answers)]), temperature=1.0)
        return [part.numpy() for part in found.split([len(answer) for answer in answers])]

    return logprobs


def gap(learner: Callable[[SampleGroup], list[np.ndarray]], group: SampleGroup, prompt: Prompt) -> float:
    """Between the engine's log-probs of *group* and the learner's of the same tokens behind *prompt*."""
    rows = learner(replace(group, prompt=prompt))
    return max(
        float(np.abs(ours - sample.trace.logprobs).max()) for ours, sample in zip(rows, group.samples, strict=True)
    )


@pytest.mark.parametrize("count", COUNTS)
async def test_engine_and_learner_see_every_picture_of_a_prompt(count: int, worker: RolloutWorker, learner: Any):
    prompt = make_prompt(count)
    group = (await worker.sample(prompt, seed=1)).group
    assert group.oldest_version == PolicyVersion(0)
    assert gap(learner, group, prompt) < 1e-4
    for place in range(count):
        images = (*prompt.pictures[:place], noise(place + 6), *prompt.pictures[place + 1 :])  # of the same size
        changed = replace(prompt, id=f"{prompt.id}, {place} changed", images=images)
        other = (await worker.sample(changed, seed=1)).group
        assert gap(learner, other, changed) < 1e-4
        assert gap(learner, other, prompt) > 0.01  # the engine saw the change
        assert gap(learner, group, changed) > 0.01  # and so did the learner


async def test_another_order_of_the_pictures_is_another_prompt(worker: RolloutWorker, learner: Any):
    prompt = make_prompt(2)
    prompt = replace(prompt, images=(noise(1), noise(7)))
    turned = replace(prompt, images=prompt.pictures[::-1])
    group = (await worker.sample(turned, seed=1)).group
    assert gap(learner, group, turned) < 1e-4
    assert gap(learner, group, prompt) > 0.01


async def test_more_pictures_than_the_engine_was_started_for_are_refused_by_prompt_id(worker: RolloutWorker):
    with pytest.raises(ValueError, match=r"prompt 6 pictures cannot be asked: .*5 image"):
        await worker.sample(make_prompt(6), seed=1)


async def test_pictures_stay_in_the_ring_until_every_sibling_has_read_them(worker: RolloutWorker):
    ring = worker._engine._llm.renderer.mm_processor_cache._shm_cache

    def held() -> dict[str, tuple[int, int]]:
        """Reads that are waited for, and those that were made, of each picture."""
        found = {}
        for key, (address, place) in ring.key_index.items():
            with ring.ring_buffer.access_buf(address) as (content, _):
                found[key] = ring.writer_flag[place], int.from_bytes(content[:4], "little")
        return found

    before = held()
    for _ in range(2):  # the same pictures again are others to the ring, where the first may be about to go
        await worker.sample(make_prompt(2), seed=3)
    await worker.answer(make_prompt(2))
    added = [found for key, found in held().items() if key not in before]
    assert added == [(4, 4)] * 4 + [(1, 1)] * 2  # four siblings, of two prompts with two pictures; one answer


async def test_what_is_given_up_keeps_no_place_in_the_ring(worker: RolloutWorker):
    ring = worker._engine._llm.renderer.mm_processor_cache._shm_cache
    known = set(ring.key_index)
    asked = [asyncio.create_task(worker.sample(make_prompt(5), seed=4)) for _ in range(2)]
    while len(ring.key_index) < len(known) + 5:  # noqa: ASYNC110 vLLM has no event for it
        await asyncio.sleep(0)
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    assert all(task.cancelled() for task in asked)
    given_up = [place for key, (_, place) in ring.key_index.items() if key not in known]
    assert {ring.writer_flag[place] for place in given_up} <= {0, 1}  # 1: before it was begun
