"""What the driver sustains with 10 to 1,000 rollout workers. One JSON line last.

    taskset -c 0 python -m tests.bench.control_plane [--workers 10 100 1000] [--seconds 15]      (about 2 minutes)

The real loop, window, order of prompts, placing of groups and rows of metrics; workers, learner and publisher are fakes
that only wait, for the times measured in `tests.bench.overlap`. Two groups a worker in a step, so that many workers
offer more than a driver can take: `samples_per_s` of the largest number is what it sustains. Each number of workers is
a process of its own.

With Ray, the same numbers when every group also goes through `RayRollouts`: the pictures put in the object store, the
call to an actor and its answer. There is one actor, on the other core, which plays all workers.
"""

import argparse
import asyncio
import json
import os
import random
import secrets
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil

from orchestrator.cluster.calls import within
from orchestrator.loop.loop import Run, StepTimes, train
from orchestrator.loop.window import Window
from orchestrator.run.journal import Journal
from orchestrator.run.metrics import step_row, terms_of
from orchestrator.supervision.fleet import Fleet, Limits
from orchestrator.supervision.supervisor import Pulse, Supervisor
from records.order import PromptOrder
from records.samples import (
    PolicyVersion,
    Prompt,
    Sample,
    SampleGroup,
    Score,
    ScoredGroup,
    StepReport,
    Trace,
    VersionSpan,
)
from reward_service.actor import ScoringLoad
from rollout.config import RolloutConfig
from tests.fakes import make_prompt, make_score

SAMPLING_S, LEARNING_S, TAKEOVER_S = 0.8, 0.9, 0.06
GROUPS_PER_WORKER = 2
SAMPLES = 8
TOKENS, PROMPT_TOKENS = 40, 110
PICTURE_BYTES = 6_000
UNCOUNTED = 1  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    found: dict[str, dict[str, dict[str, float]]] = {"loop": {}, "with_ray": {}}
    for kind in found:
        for workers in options.workers:
            with get_context("spawn").Pool(1) as alone:
                found[kind][str(workers)] = alone.apply(measure, (kind, workers, options.seconds))
            print(f"{kind}, {workers} workers: {found[kind][str(workers)]}", flush=True)
    most = found["loop"][str(max(options.workers))]
    print(json.dumps({"samples_per_s": most["samples_per_s"], **found}))


def measure(kind: str, workers: int, seconds: float) -> dict[str, float]:
    if kind == "loop":
        return asyncio.run(run_supervised([FakeActor() for _ in range(workers)], FakeRollouts, seconds))
    return measure_with_ray(workers, seconds)


def measure_with_ray(workers: int, seconds: float) -> dict[str, float]:
    import ray

    from orchestrator.cluster.rollouts import RayRollouts
    from tests.bench.control_plane import RayFakeActor  # Ray finds it by a module's name that is not __main__

    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    cores = sorted(os.sched_getaffinity(0))
    for process in psutil.Process().children(recursive=True):
        process.cpu_affinity(range(os.cpu_count() or 1))
    actor = ray.remote(num_cpus=0, max_concurrency=100_000)(RayFakeActor).remote()
    ray.get(actor.use_cores.remote([core for core in range(os.cpu_count() or 1) if core not in cores[:1]]))
    config = SimpleNamespace(rollout=RolloutConfig(timeout_s=600.0))
    crew: Any = SimpleNamespace(config=config, tell=lambda event, **facts: None)
    try:
        return asyncio.run(run_supervised([actor] * workers, lambda it: RayRollouts(it, crew), seconds))
    finally:
        ray.shutdown()


async def run_supervised(actors: list[Any], make: Callable[[Supervisor[Any]], Any], seconds: float) -> dict[str, float]:
    """`run_for` on workers that the real supervisor watches, in the order of *actors*."""
    left = iter(actors)
    supervisor = Supervisor(
        Fleet("rollout", len(actors), Limits()), lambda name: Hand(next(left)), lambda event, **facts: None
    )
    supervisor.begin()
    await supervisor.until(lambda: len(supervisor.hands) == len(actors))
    found = await run_for(make(supervisor), len(actors), seconds)
    await supervisor.end()
    return found


class Hand:
    """Of a worker that is always well."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    async def start(self, placed: Callable[[], None]) -> int:
        placed()
        return 0

    async def look(self) -> Pulse:
        return Pulse(0, has_work=False)


def answers(version: int) -> tuple[tuple[Sample, ...], tuple[Score, ...]]:
    prompt_token_ids = np.arange(PROMPT_TOKENS, dtype=np.int32)
    samples = tuple(
        Sample(
            id=f"sample {index}",
            trace=Trace(
                prompt_token_ids=prompt_token_ids,
                token_ids=np.arange(TOKENS, dtype=np.int32),
                logprobs=np.full(TOKENS, -0.5, dtype=np.float32),
                versions=(VersionSpan(version=PolicyVersion(version), start=0, end=TOKENS),),
                finish="stop",
            ),
            text="<think> 0 turned blue </think> <answer> 0.color.blue </answer>",
        )
        for index in range(SAMPLES)
    )
    return samples, tuple(make_score(float(index)) for index in range(SAMPLES))


class FakeActor:
    """A rollout worker that waits, and then gives what is there already."""

    known: tuple[int, Any] = (0, answers(0))  # of all workers: only a driver's work is to be measured
    delays = random.Random(0)

    def __init__(self) -> None:
        self.sample_stored = self

    def remote(self, *_: Any) -> "asyncio.Future[Any]":
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        loop.call_later(SAMPLING_S * self.delays.uniform(0.8, 1.2), done.set_result, self.known[1])
        return done


class FakeRollouts:
    """`cluster.rollouts.RayRollouts` without Ray."""

    def __init__(self, supervisor: Supervisor[Hand]) -> None:
        self._supervisor = supervisor

    async def sample(self, prompt: Prompt, *, seed: int) -> ScoredGroup:
        async with self._supervisor.serving() as (_, hand):
            call = hand.actor.sample_stored.remote(prompt, seed)
            samples, scores = await within(600.0, f"sampling of {prompt.id}", call)
        return ScoredGroup(group=SampleGroup(prompt=prompt, samples=samples), scores=scores)

    async def answer(self, prompt: Prompt) -> Sample:
        raise AssertionError(f"{prompt.id} was to be answered")

    async def serve(self, version: PolicyVersion) -> None:
        FakeActor.known = (version, answers(version))


class RayFakeActor:
    """Plays all workers."""

    def __init__(self) -> None:
        self.known = answers(0)

    async def use_cores(self, cores: list[int]) -> None:
        for thread in psutil.Process().threads():
            os.sched_setaffinity(thread.id, cores or [0])

    async def serve(self, version: PolicyVersion) -> None:
        self.known = answers(version)

    async def sample_stored(self, prompt: Prompt, pictures: tuple[bytes, ...], seed: int) -> tuple[Any, Any]:
        await asyncio.sleep(SAMPLING_S * random.uniform(0.8, 1.2))
        return *self.known, None


class FakeLearner:
    """Waits."""

    version = 0

    async def step(self, groups: tuple[ScoredGroup, ...]) -> StepReport:
        await asyncio.sleep(LEARNING_S)
        self.version += 1
        return StepReport(version=PolicyVersion(self.version), loss=0.0, grad_norm=1.0, tokens=1)

    async def checkpoint(self) -> None:
        raise AssertionError("a checkpoint was to be written")


class FakePublisher:
    """Waits, then tells the workers."""

    def __init__(self, rollouts: Any) -> None:
        self._rollouts = rollouts

    async def send(self, version: PolicyVersion) -> Coroutine[Any, Any, float]:
        async def takeover() -> float:
            await asyncio.sleep(TAKEOVER_S)
            if isinstance(self._rollouts, FakeRollouts):
                await self._rollouts.serve(version)
            else:
                await self._rollouts.workers[0].serve.remote(version)
            return TAKEOVER_S

        return takeover()


async def run_for(rollouts: Any, workers: int, seconds: float) -> dict[str, float]:
    """As many steps as fit into *seconds*, but for the first; the last may end later. The journal is written."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        journal.began(PolicyVersion(0))
        return await run_with(rollouts, journal, workers, seconds)


async def run_with(rollouts: Any, journal: Journal, workers: int, seconds: float) -> dict[str, float]:
    size = GROUPS_PER_WORKER * workers
    picture = os.urandom(PICTURE_BYTES)
    prompts = [replace(make_prompt(f"{number}/basic/center"), images=(picture, picture)) for number in range(1000)]
    driver = psutil.Process()
    began = last = time.monotonic()
    cpu_s, steps, rss = 0.0, 0, driver.memory_info().rss
    enough = asyncio.Event()

    async def after_step(report: StepReport, groups: tuple[ScoredGroup, ...], times: StepTimes) -> None:
        nonlocal began, last, cpu_s, steps
        now = time.monotonic()
        load = ScoringLoad(busy_s=0, full_s=0, longest_wait_s=0)
        step_row(report, groups, times, (load,), terms_of(groups), now - last, now - began)
        last = now
        if report.version <= UNCOUNTED:
            began, cpu_s = now, cpu_time(driver)
            return
        steps += 1
        if now - began > seconds:
            enough.set()

    run = Run(
        rollouts=rollouts,
        learner=FakeLearner(),
        publisher=FakePublisher(rollouts),
        prompts=PromptOrder(prompts, seed=0),
        window=Window(groups_per_step=size, max_staleness=1, total_groups=1_000_000 * size),
        journal=journal,
        steps=1_000_000,
        groups_per_step=size,
        max_staleness=1,
        seed=0,
        checkpoint_every=0,
        evaluate_every=0,
        after_step=after_step,
        evaluate=lambda: asyncio.sleep(0),
    )
    training = asyncio.create_task(train(run))
    stopping = asyncio.create_task(enough.wait())
    await asyncio.wait([training, stopping], return_when=asyncio.FIRST_COMPLETED)
    if training.done():
        training.result()
    groups = steps * size
    wall_s, used_s = last - began, cpu_time(driver) - cpu_s
    result = {
        "samples_per_s": round(groups * SAMPLES / wall_s),
        "offered_per_s": round(size * SAMPLES / max(LEARNING_S, SAMPLING_S + TAKEOVER_S)),
        "cpu_ms_per_group": round(1e3 * used_s / groups, 3),
        "cpu_share": round(used_s / wall_s, 2),
        "grown_mb": round((driver.memory_info().rss - rss) / 1e6, 1),
        "held_groups": run.window.num_held,
        "steps": steps,
    }
    training.cancel()
    await asyncio.gather(training, return_exceptions=True)
    return result


def cpu_time(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    main()
