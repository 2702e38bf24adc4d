"""The worker's rules, with an engine that does what the test says."""

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from records.manifest import Bucket, DamagedWeights, Manifest, TensorInfo, checksum
from records.samples import PolicyVersion, Prompt, Sample, Score, ScoringFailure
from rollout.actor import RolloutWorker, Scorer, WeightUpdateError
from rollout.config import RolloutConfig
from rollout.shm import SharedFiles
from tasks.tvr.language.gold import Gold
from tests.fakes import make_group, make_score


class GatedEngine:
    """The last sample of a group ends when *answers* opens, loading when *gate* does."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.answers = asyncio.Event()
        self.loading = asyncio.Event()
        self.begun: list[str] = []
        self.new_eyes: list[bool] = []
        self.no_room: OSError | None = None
        self.prepared_now = 0
        self.preparing = asyncio.Event()

    async def sample(
        self, prompt: Prompt, num_samples: int, seed: int, greedy: bool
    ) -> AsyncIterator[tuple[int, Sample]]:
        self.begun.append(prompt.id)
        for index, sample in enumerate(make_group(prompt, version=0, num_samples=num_samples).samples):
            if index == num_samples - 1:
                await self.answers.wait()
            yield index, sample

    @asynccontextmanager
    async def prepared(
        self, manifest: Manifest, buckets: Sequence[Bucket], folder: Path
    ) -> AsyncIterator[list[dict[str, Any]]]:
        if self.no_room is not None:
            raise self.no_room
        self.prepared_now += 1
        self.preparing.set()
        try:
            yield []
        finally:
            self.prepared_now -= 1

    async def load_weights(self, manifest: Manifest, parts: Sequence[dict[str, Any]], new_eyes: bool) -> float:
        assert self.prepared_now == 1
        self.new_eyes.append(new_eyes)
        self.loading.set()
        await self.gate.wait()
        return 0.25


class Payer:
    """Pays 1 for every sample, and remembers which it was shown."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    async def score(self, gold: Gold, sample: Sample) -> Score:
        self.shown.append(sample.id)
        return make_score(1.0)


def weights(version: int, vision: int = 0) -> tuple[Manifest, Bucket]:
    """A version of two tensors, one of them the vision tower's, which holds *vision*."""
    bucket = {"lm_head": np.full(4, version, np.uint8), "model.visual.merger": np.full(4, vision, np.uint8)}
    infos = tuple(
        TensorInfo(name=name, dtype="uint8", shape=(4,), checksum=checksum(content)) for name, content in bucket.items()
    )
    return Manifest(version=PolicyVersion(version), buckets=(infos,), is_whole=True), bucket


def make_worker(
    engine: GatedEngine,
    tmp_path: Path,
    inflight: Literal["keep", "drain"] = "keep",
    scorer: Scorer | None = None,
) -> RolloutWorker:
    worker = RolloutWorker(RolloutConfig(samples_per_prompt=2, inflight=inflight), "no-model", "w", scorer or Payer())
    worker._engine = engine  # type: ignore[assignment]
    worker._files = SharedFiles("w", tmp_path)
    return worker


async def test_a_cancelled_update_makes_the_worker_refuse(tmp_path: Path, make_prompt: Callable[[int], Prompt]) -> None:
    engine = GatedEngine()
    worker = make_worker(engine, tmp_path)
    sampling = asyncio.create_task(worker.sample(make_prompt(0), seed=0))
    update = asyncio.create_task(worker.receive(*weights(1)))
    await engine.loading.wait()
    update.cancel()
    with pytest.raises(asyncio.CancelledError):
        await update
    with pytest.raises(WeightUpdateError, match="worker w failed to load version 1"):
        await sampling
    with pytest.raises(WeightUpdateError):
        await worker.sample(make_prompt(0), seed=0)
    with pytest.raises(WeightUpdateError):
        await worker.receive(*weights(2))


async def test_a_cancelled_caller_is_cancelled_and_leaves_the_worker_usable(
    tmp_path: Path, make_prompt: Callable[[int], Prompt]
) -> None:
    engine = GatedEngine()
    worker = make_worker(engine, tmp_path)
    sampling = asyncio.create_task(worker.sample(make_prompt(0), seed=0))
    await asyncio.sleep(0)
    sampling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sampling
    engine.gate.set()
    assert await worker.receive(*weights(1)) == 0.25
    assert worker.version == 1


async def test_no_older_version_is_received_and_the_same_again_is(tmp_path: Path) -> None:
    engine = GatedEngine()
    engine.gate.set()
    worker = make_worker(engine, tmp_path)
    assert await worker.receive(*weights(3)) == 0.25
    assert worker.version == 3
    with pytest.raises(ValueError, match="version 2 is older than 3"):
        await worker.receive(*weights(2))
    assert await worker.receive(*weights(3)) == 0.25  # the learner has made it again
    assert worker.version == 3
    assert await worker.receive(*weights(4)) == 0.25
    assert worker.version == 4


async def test_answers_and_a_version_that_is_loaded_are_work(
    tmp_path: Path, make_prompt: Callable[[int], Prompt]
) -> None:
    """A worker that hangs in either is found by what it does not do."""
    engine = GatedEngine()
    worker = make_worker(engine, tmp_path)
    assert not worker.has_work
    sampling = asyncio.create_task(worker.sample(make_prompt(0), seed=0))
    await asyncio.sleep(0)
    assert worker.has_work
    sampling.cancel()
    await asyncio.gather(sampling, return_exceptions=True)
    assert not worker.has_work
    loading = asyncio.create_task(worker.receive(*weights(1)))
    await engine.loading.wait()
    assert worker.has_work
    engine.gate.set()
    await loading
    assert not worker.has_work


async def test_of_two_updates_at_once_the_older_is_refused(tmp_path: Path) -> None:
    engine = GatedEngine()
    worker = make_worker(engine, tmp_path)
    newer = asyncio.create_task(worker.receive(*weights(2)))
    await engine.loading.wait()
    older = asyncio.create_task(worker.receive(*weights(1)))
    engine.gate.set()
    await newer
    assert worker.version == 2
    with pytest.raises(ValueError, match="version 1 is older than 2"):
        await older


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_kept_answers_do_not_hold_up_an_update(tmp_path: Path, make_prompt: Callable[[int], Prompt]) -> None:
    engine = GatedEngine()
    worker = make_worker(engine, tmp_path, "keep")
    sampling = asyncio.create_task(worker.sample(make_prompt(0), seed=0))
    await settle()
    engine.gate.set()
    assert await worker.receive(*weights(1)) == 0.25
    assert worker.version == 1
    assert not sampling.done()
    engine.answers.set()
    await sampling


async def test_an_update_waits_for_answers_that_are_drained_and_new_ones_wait_for_it(
    tmp_path: Path, make_prompt: Callable[[int], Prompt]
) -> None:
    engine = GatedEngine()
    worker = make_worker(engine, tmp_path, "drain")
    first = asyncio.create_task(worker.sample(make_prompt(0), seed=0))
    await settle()
    update = asyncio.create_task(worker.receive(*weights(1)))
    await settle()
    second = asyncio.create_task(worker.sample(make_prompt(1), seed=0))
    await settle()
    assert not engine.loading.is_set()  # the first answers are not done
    engine.answers.set()
    await first
    await engine.loading.wait()
    await settle()
    assert engine.begun == [make_prompt(0).id]  # the second have not begun
    engine.gate.set()
    await update
    assert worker.version == 1
    await second
    assert engine.begun == [make_prompt(0).id, make_prompt(1).id]


async def test_a_drain_that_is_cancelled_leaves_the_worker_usable(
    tmp_path: Path, make_prompt: Callable[[int], Prompt]
) -> None:
    engine = GatedEngine()
    worker = make_worker(engine, tmp_path, "drain")
    first = asyncio.create_task(worker.sample(make_prompt(0), seed=0))
    await settle()
    update = asyncio.create_task(worker.receive(*weights(1)))
    await settle()
    update.cancel()
    with pytest.raises(asyncio.CancelledError):
        await update
    second = asyncio.create_task(worker.sample(make_prompt(1), seed=0))
    engine.answers.set()
    await asyncio.gather(first, second)


async def test_after_a_failed_update_what_waited_for_it_is_refused(
    tmp_path: Path, make_prompt: Callable[[int], Prompt]
) -> None:
    class FailingEngine(GatedEngine):
        async def load_weights(self, manifest: Manifest, parts: Sequence[dict[str, Any]], new_eyes: bool) -> float:
            await super().load_weights(manifest, parts, new_eyes)
            raise RuntimeError("half of it")

    engine = FailingEngine()
    worker = make_worker(engine, tmp_path, "drain")
    update = asyncio.create_task(worker.receive(*weights(1)))
    await engine.loading.wait()
    waiting = asyncio.create_task(worker.sample(make_prompt(0), seed=0))
    await settle()
    engine.gate.set()
    for refused in (update, waiting):
        with pytest.raises(WeightUpdateError, match="half of it"):
            await refused
    assert engine.prepared_now == 0


async def test_without_room_for_a_version_the_worker_goes_on_with_the_one_before(
    tmp_path: Path, make_prompt: Callable[[int], Prompt]
) -> None:
    engine = GatedEngine()
    engine.gate.set()
    engine.answers.set()
    worker = make_worker(engine, tmp_path, "drain")
    engine.no_room = OSError(errno.ENOSPC, "no room")
    with pytest.raises(OSError, match="no room"):
        await worker.receive(*weights(1))
    await asyncio.wait_for(worker.sample(make_prompt(0), seed=0), 10)
    engine.no_room = None
    await worker.receive(*weights(1))
    assert worker.version == 1


async def test_a_version_is_prepared_while_answers_that_are_drained_go_on(
    tmp_path: Path, make_prompt: Callable[[int], Prompt]
) -> None:
    engine = GatedEngine()
    engine.gate.set()
    worker = make_worker(engine, tmp_path, "drain")
    sampling = asyncio.create_task(worker.sample(make_prompt(0), seed=0))
    await settle()
    update = asyncio.create_task(worker.receive(*weights(1)))
    await asyncio.wait_for(engine.preparing.wait(), 10)
    assert not sampling.done()
    engine.answers.set()
    await asyncio.gather(sampling, update)


async def test_every_version_has_the_tensors_of_the_first(tmp_path: Path) -> None:
    engine = GatedEngine()
    engine.gate.set()
    worker = make_worker(engine, tmp_path)
    await worker.receive(*weights(1))
    manifest, bucket = weights(2)
    fewer = replace(manifest, buckets=(manifest.buckets[0][:1],))
    with pytest.raises(ValueError, match=r"version 2 has not the tensors of 1, .* such as model\.visual\.merger"):
        await worker.receive(fewer, {"lm_head": bucket["lm_head"]})
    assert worker.version == 1
    await worker.receive(manifest, bucket)
    assert worker.version == 2


async def test_a_sample_is_scored_as_it_ends_not_as_its_group_ends(
    tmp_path: Path, make_prompt: Callable[[int], Prompt]
) -> None:
    engine, scorer = GatedEngine(), Payer()
    worker = make_worker(engine, tmp_path, scorer=scorer)
    sampling = asyncio.create_task(worker.sample(make_prompt(0), seed=0))
    await settle()
    assert scorer.shown == ["0/basic/center#0"]
    engine.answers.set()
    scored = await sampling
    assert scorer.shown == ["0/basic/center#0", "0/basic/center#1"]
    assert scored.rewards.tolist() == [1.0, 1.0]


async def test_slow_scoring_keeps_no_place_from_the_next_group(
    tmp_path: Path, make_prompt: Callable[[int], Prompt]
) -> None:
    class Slow(Payer):
        gate = asyncio.Event()

        async def score(self, gold: Gold, sample: Sample) -> Score:
            await self.gate.wait()
            return await super().score(gold, sample)

    engine, scorer = GatedEngine(), Slow()
    worker = make_worker(engine, tmp_path, scorer=scorer)
    worker._slots = asyncio.Semaphore(1)
    engine.answers.set()
    groups = [asyncio.create_task(worker.sample(make_prompt(number), seed=0)) for number in range(3)]
    await settle()
    assert engine.begun == [make_prompt(number).id for number in range(3)]
    assert not any(group.done() for group in groups)
    scorer.gate.set()
    await asyncio.gather(*groups)


async def test_a_sample_that_is_not_scored_fails_its_group_by_name(
    tmp_path: Path, make_prompt: Callable[[int], Prompt]
) -> None:
    class Failing(Payer):
        async def score(self, gold: Gold, sample: Sample) -> Score:
            raise ScoringFailure(sample.id, "the rule raised")

    engine = GatedEngine()
    engine.answers.set()
    worker = make_worker(engine, tmp_path, scorer=Failing())
    with pytest.raises(ScoringFailure, match="0/basic/center#0 was not scored: the rule raised"):
        await worker.sample(make_prompt(0), seed=0)


async def test_half_a_version_is_refused_and_the_one_before_is_served_on(
    tmp_path: Path, make_prompt: Callable[[int], Prompt]
) -> None:
    engine = GatedEngine()
    engine.gate.set()
    engine.answers.set()
    worker = make_worker(engine, tmp_path)
    await worker.receive(*weights(1))
    manifest, bucket = weights(2)
    flipped = bucket["lm_head"].copy()
    flipped[3] ^= 1
    for buckets, message in (
        ((), "version 2 has 1 buckets, and 0 came"),
        (({"lm_head": bucket["lm_head"]},), "bucket 0 of version 2 lacks or adds model.visual.merger"),
        (({**bucket, "lm_head": bucket["lm_head"][:3]},), "lm_head of version 2 is not what the learner sent"),
        (({**bucket, "lm_head": flipped},), "lm_head of version 2 is not what the learner sent"),
    ):
        with pytest.raises(DamagedWeights, match=message):
            await worker.receive(manifest, *buckets)
    assert len(engine.new_eyes) == 1  # nothing of version 2 reached the engine
    assert worker.version == 1
    await worker.sample(make_prompt(0), seed=0)
    await worker.receive(manifest, bucket)
    assert worker.version == 2


async def test_pictures_are_encoded_again_only_if_the_vision_tower_has_changed(tmp_path: Path) -> None:
    engine = GatedEngine()
    engine.gate.set()
    worker = make_worker(engine, tmp_path)
    for version, vision in ((1, 0), (2, 0), (3, 7), (4, 7)):
        await worker.receive(*weights(version, vision))
    # Of version 1 nobody knows what version 0 had.
    assert engine.new_eyes == [True, False, True, False]


@pytest.mark.parametrize(("names", "new_eyes"), [({"lm_head"}, False), ({"lm_head", "model.visual.merger"}, True)])
async def test_by_nccl_pictures_are_encoded_again_only_if_a_version_holds_something_of_the_vision_tower(
    names: set[str], new_eyes: bool, tmp_path: Path
) -> None:
    engine = GatedEngine()
    engine.gate.set()
    worker = make_worker(engine, tmp_path)
    worker.config = RolloutConfig(weight_transport="nccl")
    infos = tuple(TensorInfo(name=name, dtype="uint8", shape=(4,), checksum="") for name in sorted(names))
    for version in (1, 2):
        await worker.receive(Manifest(version=PolicyVersion(version), buckets=(infos,), is_whole=False))
    assert engine.new_eyes == [new_eyes] * 2
