"""The worker's rules, with an engine that does what the test says."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pytest

from rollout.actor import RolloutWorker, WeightUpdateError
from rollout.config import RolloutConfig
from rollout.shm import SharedFiles
from tests.fakes import make_group
from tvr.records import PolicyVersion, Prompt, SampleGroup


class GatedEngine:
    """Sampling ends when *answers* opens, loading when *gate* does."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.answers = asyncio.Event()
        self.loading = asyncio.Event()
        self.begun: list[str] = []

    async def sample(self, prompt: Prompt, num_samples: int, seed: int, greedy: bool) -> SampleGroup:
        self.begun.append(prompt.id)
        await self.answers.wait()
        return make_group(prompt, version=0)

    async def load_weights(self, version: PolicyVersion, buckets: Sequence[bytes], file: Path) -> None:
        self.loading.set()
        await self.gate.wait()


def make_worker(engine: GatedEngine, tmp_path: Path, inflight: Literal["keep", "drain"] = "keep") -> RolloutWorker:
    worker = RolloutWorker(RolloutConfig(inflight=inflight), "no-model", "w")
    worker._engine = engine  # type: ignore[assignment]
    worker._files = SharedFiles("w", tmp_path)
    return worker


async def test_a_cancelled_update_makes_the_worker_refuse(tmp_path: Path, make_prompt: Callable[[int], Prompt]) -> None:
    engine = GatedEngine()
    worker = make_worker(engine, tmp_path)
    sampling = asyncio.create_task(worker.sample(make_prompt(0), 2, seed=0))
    update = asyncio.create_task(worker.receive(PolicyVersion(1), b"bucket"))
    await engine.loading.wait()
    update.cancel()
    with pytest.raises(asyncio.CancelledError):
        await update
    with pytest.raises(WeightUpdateError, match="worker w failed to load version 1"):
        await sampling
    with pytest.raises(WeightUpdateError):
        await worker.sample(make_prompt(0), 2, seed=0)
    with pytest.raises(WeightUpdateError):
        await worker.receive(PolicyVersion(2), b"bucket")


async def test_a_cancelled_caller_is_cancelled_and_leaves_the_worker_usable(
    tmp_path: Path, make_prompt: Callable[[int], Prompt]
) -> None:
    engine = GatedEngine()
    worker = make_worker(engine, tmp_path)
    sampling = asyncio.create_task(worker.sample(make_prompt(0), 2, seed=0))
    await asyncio.sleep(0)
    sampling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sampling
    engine.gate.set()
    assert await worker.receive(PolicyVersion(1), b"bucket") == 1


async def test_only_a_newer_version_is_received(tmp_path: Path) -> None:
    engine = GatedEngine()
    engine.gate.set()
    worker = make_worker(engine, tmp_path)
    assert await worker.receive(PolicyVersion(3), b"bucket") == 3
    for version in (2, 3):
        with pytest.raises(ValueError, match=f"version {version} is not newer than 3"):
            await worker.receive(PolicyVersion(version), b"bucket")
    assert await worker.receive(PolicyVersion(4), b"bucket") == 4


async def test_of_two_updates_at_once_the_older_is_refused(tmp_path: Path) -> None:
    engine = GatedEngine()
    worker = make_worker(engine, tmp_path)
    newer = asyncio.create_task(worker.receive(PolicyVersion(2), b"bucket"))
    await engine.loading.wait()
    older = asyncio.create_task(worker.receive(PolicyVersion(1), b"bucket"))
    engine.gate.set()
    assert await newer == 2
    with pytest.raises(ValueError, match="not newer"):
        await older


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_kept_answers_do_not_hold_up_an_update(tmp_path: Path, make_prompt: Callable[[int], Prompt]) -> None:
    engine = GatedEngine()
    worker = make_worker(engine, tmp_path, "keep")
    sampling = asyncio.create_task(worker.sample(make_prompt(0), 2, seed=0))
    await settle()
    engine.gate.set()
    assert await worker.receive(PolicyVersion(1), b"bucket") == 1
    assert not sampling.done()
    engine.answers.set()
    await sampling


async def test_an_update_waits_for_answers_that_are_drained_and_new_ones_wait_for_it(
    tmp_path: Path, make_prompt: Callable[[int], Prompt]
) -> None:
    engine = GatedEngine()
    worker = make_worker(engine, tmp_path, "drain")
    first = asyncio.create_task(worker.sample(make_prompt(0), 2, seed=0))
    await settle()
    update = asyncio.create_task(worker.receive(PolicyVersion(1), b"bucket"))
    await settle()
    second = asyncio.create_task(worker.sample(make_prompt(1), 2, seed=0))
    await settle()
    assert not engine.loading.is_set()  # the first answers are not done
    engine.answers.set()
    await first
    await engine.loading.wait()
    await settle()
    assert engine.begun == [make_prompt(0).id]  # the second have not begun
    engine.gate.set()
    assert await update == 1
    await second
    assert engine.begun == [make_prompt(0).id, make_prompt(1).id]


async def test_a_drain_that_is_cancelled_leaves_the_worker_usable(
    tmp_path: Path, make_prompt: Callable[[int], Prompt]
) -> None:
    engine = GatedEngine()
    worker = make_worker(engine, tmp_path, "drain")
    first = asyncio.create_task(worker.sample(make_prompt(0), 2, seed=0))
    await settle()
    update = asyncio.create_task(worker.receive(PolicyVersion(1), b"bucket"))
    await settle()
    update.cancel()
    with pytest.raises(asyncio.CancelledError):
        await update
    second = asyncio.create_task(worker.sample(make_prompt(1), 2, seed=0))
    engine.answers.set()
    await asyncio.gather(first, second)


async def test_after_a_failed_update_what_waited_for_it_is_refused(
    tmp_path: Path, make_prompt: Callable[[int], Prompt]
) -> None:
    class FailingEngine(GatedEngine):
        async def load_weights(self, version: PolicyVersion, buckets: Sequence[bytes], file: Path) -> None:
            await super().load_weights(version, buckets, file)
            raise RuntimeError("half of it")

    engine = FailingEngine()
    worker = make_worker(engine, tmp_path, "drain")
    update = asyncio.create_task(worker.receive(PolicyVersion(1), b"bucket"))
    await engine.loading.wait()
    waiting = asyncio.create_task(worker.sample(make_prompt(0), 2, seed=0))
    await settle()
    engine.gate.set()
    for refused in (update, waiting):
        with pytest.raises(WeightUpdateError, match="half of it"):
            await refused
