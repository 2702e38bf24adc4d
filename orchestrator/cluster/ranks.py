"""The learner's ranks, as long as all of them live: every call goes to all of them at once."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import ray

from learner.checkpoint import Checkpoint
from learner.config import LearnerConfig
from orchestrator.cluster.calls import each, within
from orchestrator.cluster.on_node import Whereabouts
from orchestrator.cluster.pictures import detached, reference, store
from orchestrator.cluster.ready import Starting
from orchestrator.loop.roles import Exported
from records.manifest import Manifest, TensorInfo
from records.samples import PolicyVersion, Prompt, SampleGroup, ScoredGroup, StepReport

BUCKET_BYTES = 256 << 20


class Checkpoints(Protocol):
    """Those of a run; the newest that nobody has found damaged is *checkpoint*."""

    checkpoint: Checkpoint | None

    def pass_over(self, reasons: Sequence[str]) -> None:
        """Go on from an older one."""


class LearnerRanks:
    """A group of `learner_actor.LearnerActor`. When one of them is lost, the others are of no use either."""

    def __init__(self, ranks: list[Any], config: LearnerConfig, checkpoint_timeout_s: float) -> None:
        self._ranks = ranks
        self._config = config
        self._checkpoint_timeout_s = checkpoint_timeout_s
        self.places: list[Whereabouts] = []

    @property
    def actors(self) -> list[Any]:
        return self._ranks

    async def completed(self) -> int:
        """How much all of them have done since they started. Whoever hangs does not answer, or has done no more."""
        return sum(await asyncio.gather(*(rank.completed_so_far.remote() for rank in self._ranks)))

    async def start(self, timeout_s: float, checkpoints: Checkpoints | None = None) -> PolicyVersion:
        """From the newest of *checkpoints* that the ranks find whole; it passes over the others. Returns its version.

        Raises ConfigError, or StartFailed.
        """
        names = [f"learner rank {rank}" for rank in range(len(self._ranks))]
        starting = Starting(self._ranks, names, timeout_s)
        self.places = await starting.check_machines()
        checkpoint = None if checkpoints is None else await self._whole(checkpoints, timeout_s)
        address, port = await within(timeout_s, "learner rank 0", self._ranks[0].host_meeting.remote())
        return (await starting.call("connect", address, port, checkpoint))[0]

    async def _whole(self, checkpoints: Checkpoints, timeout_s: float) -> Checkpoint | None:
        """Each rank reads its share of the files; nobody else reads all of them."""
        while checkpoints.checkpoint is not None:
            found = await each(self._ranks, timeout_s, "check of the checkpoint", "damage", checkpoints.checkpoint)
            reasons = [reason for share in found for reason in share]
            if not reasons:
                break
            checkpoints.pass_over(reasons)
        return checkpoints.checkpoint

    async def address(self, timeout_s: float) -> tuple[str, int]:
        """Rank 0's, with a port that is free now."""
        return await within(timeout_s, "learner rank 0", self._ranks[0].address.remote())

    async def step(self, groups: tuple[ScoredGroup, ...]) -> StepReport:
        sent = tuple(replace(scored, group=_sent(scored.group)) for scored in groups)
        references = [reference(scored.group.prompt) for scored in groups]
        return (await self.call("learner step", "step_stored", ray.put(sent), *references))[0]

    async def imitate(self, prompts: tuple[Prompt, ...], answers: tuple[str, ...]) -> StepReport:
        """One supervised update on the right *answers* to *prompts*; makes the next version."""
        stored = [store(prompt) for prompt in prompts]
        sent = ray.put(tuple(zip(map(detached, stored), answers, strict=True)))
        return (await self.call("supervised step", "imitate_stored", sent, *map(reference, stored)))[0]

    async def checkpoint(self) -> None:
        await self.finish_checkpoint()  # here, where no rank waits for another in the process group meanwhile
        await self.call("checkpoint", "save_checkpoint")

    async def finish_checkpoint(self) -> None:
        """Return when the last checkpoint is on disk. Raises what its writing raised."""
        await self._call_slow("writing of the checkpoint", "finish_checkpoint")

    async def snapshot_bytes(self) -> dict[str, int]:
        """By host, how much of its memory a checkpoint takes while it is written; together they are its size."""
        found: dict[str, int] = {}
        for host, size in await self.call("size of a checkpoint", "snapshot_bytes"):
            found[host] = found.get(host, 0) + size
        return found

    async def export(self, version: PolicyVersion) -> Exported:
        counts = await self.call("planning of weight buckets", "weight_bucket_count", BUCKET_BYTES)
        # All are under way before the first is waited for: the ranks never idle between two.
        exported = await asyncio.gather(*(self._bucket(index) for index in range(counts[0])))
        infos, buckets = tuple(part for part, _ in exported), tuple(bucket for _, bucket in exported)
        manifest = Manifest(version=version, buckets=infos, is_whole=self._config.trains_all)
        return Exported(manifest=manifest, buckets=buckets)

    async def save(self, folder: str) -> None:
        await self._call_slow("saving of the model", "save_model", folder)

    async def logprobs(self, groups: tuple[SampleGroup, ...]) -> list[list[list[np.ndarray]]]:
        """By rank, group and sample: what the newest version gives the sampled tokens, `[La]` nats."""
        references = [reference(group.prompt) for group in groups]
        return await self.call("log-probs", "logprobs_stored", ray.put(tuple(map(_sent, groups))), *references)

    async def _bucket(self, index: int) -> tuple[tuple[TensorInfo, ...], Any]:
        """What the rank whose turn it is says of its bucket, and a reference to it."""
        results = [rank.weight_bucket.options(num_returns=2, name="export").remote(index) for rank in self._ranks]
        what = f"export of bucket {index}"
        said = await asyncio.gather(*(within(self._config.timeout_s, what, infos) for infos, _ in results))
        turn = index % len(self._ranks)
        return said[turn], results[turn][1]

    async def call(self, what: str, method: str, *args: Any) -> list[Any]:
        """What each rank returned."""
        return await each(self._ranks, self._config.timeout_s, what, method, *args)

    async def _call_slow(self, what: str, method: str, *args: Any) -> list[Any]:
        """`call` of what takes as long as the disk does."""
        return await each(self._ranks, self._checkpoint_timeout_s, what, method, *args)


def _sent(group: SampleGroup) -> SampleGroup:
    return replace(group, prompt=detached(group.prompt))
