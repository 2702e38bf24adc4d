"""The worker's rules, with an engine that does what the test says."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rollout.actor import RolloutWorker, WeightUpdateError
from rollout.config import RolloutConfig
from rollout.shm import SharedFiles
from tvr.records import PolicyVersion, Prompt, SampleGroup


class GatedEngine:
    """Sampling never ends; loading ends when *gate* opens."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.loading = asyncio.Event()

    async def sample(self, prompt: Prompt, num_samples: int, seed: int, greedy: bool) -> SampleGroup:
        await asyncio.Event().wait()
        raise AssertionError

    async def load_weights(self, version: PolicyVersion, buckets: Sequence[bytes], file: Path) -> None:
        self.loading.set()
        await self.gate.wait()


def make_worker(engine: GatedEngine, tmp_path: Path) -> RolloutWorker:
    worker = RolloutWorker(RolloutConfig(), "no-model", "w")
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
