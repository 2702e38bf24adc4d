"""Publishing a version: two transports behind one call, `roles.Publisher.send`.

By the object store (any machine): the learner's ranks write each bucket once, in turn, every node fetches it once, and
workers read it there. They load while the learner makes its next step. By NCCL: the learner's rank 0 and the engines'
workers meet in vLLM's own broadcast, and the learner waits for its end. NCCL was not yet run on a GPU. Either way a
version consists of what training can change (`learner/policy.py`).
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from orchestrator.cluster.calls import within
from orchestrator.cluster.learner import RayLearner
from orchestrator.cluster.rollouts import RayRollouts
from orchestrator.loop.roles import Exported, Publisher
from records.samples import PolicyVersion
from rollout.config import NCCL, RolloutConfig


def make_publisher(learner: RayLearner, rollouts: RayRollouts, config: RolloutConfig) -> Publisher:
    """By the transport that the run file names."""
    if config.weight_transport == NCCL:
        return NcclPublisher(learner, rollouts, config)
    return StorePublisher(learner, rollouts)


class StorePublisher:
    """`roles.Publisher` by Ray's object store."""

    def __init__(self, learner: RayLearner, rollouts: RayRollouts) -> None:
        self._learner = learner
        self._rollouts = rollouts

    async def send(self, version: PolicyVersion) -> Coroutine[Any, Any, float]:
        return self._rollouts.receive(await self._learner.export(version))


class NcclPublisher:
    """`roles.Publisher` by vLLM's NCCL weight transfer."""

    def __init__(self, learner: RayLearner, rollouts: RayRollouts, config: RolloutConfig) -> None:
        self._learner = learner
        self._rollouts = rollouts
        self._config = config
        self._met: list[Any] = []

    async def send(self, version: PolicyVersion) -> Coroutine[Any, Any, float]:
        if self._met != self._rollouts.workers:
            await self._meet()
        manifest = (await self._learner.call("manifest", "manifest", version))[0]
        exported = Exported(manifest=manifest, buckets=())
        _, pause_s = await asyncio.gather(
            self._learner.call("broadcast", "broadcast"), self._rollouts.receive(exported)
        )
        return _done(pause_s)

    async def _meet(self) -> None:
        timeout_s, ranks_each = self._config.timeout_s, self._config.tensor_parallel_size
        workers = list(self._rollouts.workers)
        address, port = await self._learner.address(timeout_s)
        place = {"master_address": address, "master_port": port, "world_size": 1 + ranks_each * len(workers)}
        joining = [
            worker.join.remote({**place, "rank_offset": 1 + ranks_each * index, "packed": True})
            for index, worker in enumerate(workers)
        ]
        await asyncio.gather(
            self._learner.call("meeting of learner and engines", "join_broadcast", address, port, place["world_size"]),
            *(within(timeout_s, f"meeting of rollout worker {index}", call) for index, call in enumerate(joining)),
        )
        self._met = workers


async def _done(pause_s: float) -> float:
    return pause_s
