"""The loop's three roles played by Ray actors, and the metrics page of Ray.

Every call to an actor has a deadline: a hung worker raises nothing by itself, ever. Groups go to the worker with the
fewest in flight.
"""

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
from ray.util.metrics import Gauge

from learner.config import LearnerConfig
from reward_service.config import RewardConfig
from rollout.config import RolloutConfig
from tvr.records import PolicyVersion, Prompt, SampleGroup, ScoredGroup, ScoringFailure, StepReport

BUCKET_BYTES = 256 << 20

T = TypeVar("T")


class WorkerTimeout(RuntimeError):
    """A worker did not answer within its deadline."""


async def within(timeout_s: float, what: str, call: Awaitable[T]) -> T:
    """The result of *call*. Raises WorkerTimeout, which names *what*, after *timeout_s* seconds."""

    async def waiting() -> T:
        return await call

    try:
        return await asyncio.wait_for(waiting(), timeout_s)
    except TimeoutError as error:
        raise WorkerTimeout(f"{what} did not answer within {timeout_s:g} s") from error


class Pool:
    """Hands each call to the actor with the fewest in flight; at most *limit* calls an actor, the others wait."""

    def __init__(self, actors: list[Any], limit: int) -> None:
        self.actors = actors
        self._in_flight = [0] * len(actors)
        self._slots = asyncio.Semaphore(limit * len(actors))

    async def call(self, timeout_s: float, what: str, method: str, *args: Any) -> Any:
        async with self._slots:
            index = self._in_flight.index(min(self._in_flight))
            self._in_flight[index] += 1
            try:
                return await within(timeout_s, what, getattr(self.actors[index], method).remote(*args))
            finally:
                self._in_flight[index] -= 1


class RayRollouts:
    """`roles.Rollouts` on actors of `rollout.actor.RolloutWorker`."""

    def __init__(self, actors: list[Any], config: RolloutConfig) -> None:
        self._pool = Pool(actors, config.concurrent_prompts)
        self._config = config

    async def start(self, timeout_s: float) -> None:
        await _each(self._pool.actors, timeout_s, "start of a rollout worker", "ready")

    async def sample(self, prompt: Prompt, *, seed: int) -> SampleGroup:
        what = f"sampling of {prompt.id}"
        samples = self._config.samples_per_prompt
        return await self._pool.call(self._config.timeout_s, what, "sample", prompt, samples, seed)

    async def answer(self, prompt: Prompt) -> SampleGroup:
        what = f"answering of {prompt.id}"
        return await self._pool.call(self._config.timeout_s, what, "sample", prompt, 1, 0, True)

    async def receive(self, version: PolicyVersion, weights: list[ray.ObjectRef]) -> None:
        """*weights* are references to buckets; each worker fetches them from the object store by itself."""
        what = f"loading of version {version}"
        await _each(self._pool.actors, self._config.timeout_s, what, "receive", version, *weights)

    async def stop(self) -> None:
        await _each(self._pool.actors, self._config.timeout_s, "stop of a rollout worker", "shutdown")


class RayScorer:
    """`roles.Scorer` on actors of `reward_service.actor.RewardWorker`."""

    def __init__(self, actors: list[Any], config: RewardConfig) -> None:
        self._pool = Pool(actors, limit=8)
        self._config = config

    async def start(self, timeout_s: float) -> None:
        await _each(self._pool.actors, timeout_s, "start of a reward worker", "__ray_ready__")

    async def score(self, group: SampleGroup) -> ScoredGroup:
        what = f"scoring of {group.prompt.id}"
        try:
            scores = await self._pool.call(self._config.timeout_s, what, "score", group)
        except WorkerTimeout as error:
            raise ScoringFailure(group.samples[0].id, str(error)) from error
        return ScoredGroup(group=group, scores=scores)


class RayLearner:
    """`roles.Learner` on a group of `learner.actor.LearnerRank`; every call goes to all ranks at once."""

    def __init__(self, ranks: list[Any], config: LearnerConfig) -> None:
        self._ranks = ranks
        self._config = config

    async def start(self, timeout_s: float, checkpoint: Path | None = None) -> None:
        address, port = await within(timeout_s, "learner rank 0", self._ranks[0].address.remote())
        path = None if checkpoint is None else str(checkpoint)
        await _each(self._ranks, timeout_s, "start of a learner rank", "connect", address, port, path)

    async def step(self, groups: tuple[ScoredGroup, ...]) -> StepReport:
        reports = await self._all("learner step", "step", ray.put(groups))
        return reports[0]

    async def imitate(self, prompts: tuple[Prompt, ...]) -> StepReport:
        """One supervised update on the right answers to *prompts*; makes the next version."""
        reports = await self._all("supervised step", "imitate", ray.put(prompts))
        return reports[0]

    async def checkpoint(self) -> None:
        await self._all("checkpoint", "save_checkpoint")

    async def finish_checkpoint(self) -> None:
        """Return when the last checkpoint is on disk. Raises what its writing raised."""
        await self._all("writing of the checkpoint", "finish_checkpoint")

    async def export(self) -> list[ray.ObjectRef]:
        """References to the buckets of rank 0; the weights never pass through this process."""
        counts = await self._all("planning of weight buckets", "weight_bucket_count", BUCKET_BYTES)
        buckets = []
        for index in range(counts[0]):
            refs = [rank.weight_bucket.remote(index) for rank in self._ranks]
            _, late = await asyncio.to_thread(
                ray.wait, refs, num_returns=len(refs), timeout=self._config.timeout_s, fetch_local=False
            )
            if late:
                raise WorkerTimeout(f"{len(late)} learner ranks did not export within {self._config.timeout_s:g} s")
            buckets.append(refs[0])
        return buckets

    async def save(self, folder: str) -> None:
        await self._all("saving of the model", "save_model", folder)

    async def logprobs(self, groups: tuple[SampleGroup, ...]) -> list[list[list[np.ndarray]]]:
        """By rank, group and sample: what the newest version gives the sampled tokens, `[La]` nats."""
        return await self._all("log-probs", "logprobs", ray.put(groups))

    async def _all(self, what: str, method: str, *args: Any) -> list[Any]:
        return await _each(self._ranks, self._config.timeout_s, what, method, *args)


class RayMetrics:
    """Numbers of the run as gauges `star_r1_*` on the metrics port of the driver's node (Ray adds `ray_` in front)."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}

    def publish(self, row: dict[str, float]) -> None:
        for key, value in row.items():
            name = "star_r1_" + key.replace("/", "_").replace(" ", "_")
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, description=f"{key} of the newest step")
            self._gauges[name].set(value)


async def _each(actors: list[Any], timeout_s: float, what: str, method: str, *args: Any) -> list[Any]:
    """The results of one method of all *actors*, called at once."""
    calls = [getattr(actor, method).remote(*args) for actor in actors]
    return await asyncio.gather(*(within(timeout_s, f"{what} ({index})", call) for index, call in enumerate(calls)))
