"""Workers become ready, or it is said why one did not: with the last lines of its own log, from whatever node."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.calls import WorkerTimeout, within
from orchestrator.cluster.machine import UnfitMachine
from orchestrator.cluster.on_node import Whereabouts, last_lines
from orchestrator.config import ConfigError, StartFailed

SHOWN_LINES = 12
READING_S = 20.0


class Starting:
    """The start of *actors*, each called *what* with its number, in all *timeout_s* seconds a call."""

    def __init__(self, actors: Sequence[Any], what: str, timeout_s: float) -> None:
        self._actors = actors
        self._what = what
        self._timeout_s = timeout_s
        self._found: dict[int, Whereabouts] = {}

    async def check_machines(self) -> None:
        """Whether their machines are fit for them. Raises ConfigError, or StartFailed."""
        found = await self.call("whereabouts")
        self._found = dict(enumerate(found))
        here = Counter(place.node_id for place in found)
        checks = [
            actor.check_machine.remote(here[place.node_id]) for actor, place in zip(self._actors, found, strict=True)
        ]
        await asyncio.gather(*(self._one(index, check) for index, check in enumerate(checks)))

    async def call(self, method: str, *args: Any) -> list[Any]:
        """The results of *method* of all actors, called at once. Raises ConfigError, or StartFailed."""
        calls = [getattr(actor, method).remote(*args) for actor in self._actors]
        return await asyncio.gather(*(self._one(index, call) for index, call in enumerate(calls)))

    async def _one(self, index: int, call: Awaitable[Any]) -> Any:
        what = f"{self._what} {index}"
        try:
            return await within(self._timeout_s, f"start of {what}", call)
        except (RayError, WorkerTimeout, UnfitMachine) as error:
            place = self._found.get(index)
            where = f"{what} on {place.address}" if place else what
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, UnfitMachine):
                raise ConfigError(f"{where}: {cause}") from None
            said = await _last_words(place) if place else ""
            raise StartFailed(f"{where} did not start: {type(cause).__name__}: {cause}{said}") from error


async def _last_words(place: Whereabouts) -> str:
    """A task on the node reads them: the actor may be dead."""
    there = NodeAffinitySchedulingStrategy(place.node_id, soft=False)
    read = ray.remote(num_cpus=0, scheduling_strategy=there)(last_lines)
    said = []
    for path in place.logs:
        try:
            lines = await within(READING_S, f"reading of {path}", read.remote(path, SHOWN_LINES))
        except (RayError, WorkerTimeout) as error:
            lines = [f"(cannot be read: {type(error).__name__})"]
        if lines:
            said.append(f"\nthe last lines of {path} on {place.address}:\n" + "\n".join(f"  {line}" for line in lines))
    return "".join(said)
