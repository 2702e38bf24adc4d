"""Workers become ready, or it is said why one did not: with the last lines of its own log, from whatever node."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any

from ray.exceptions import RayError, RayTaskError

from orchestrator.cluster.calls import WorkerTimeout, within
from orchestrator.cluster.machine import UnfitMachine
from orchestrator.cluster.on_node import Whereabouts, last_words
from orchestrator.config import ConfigError, StartFailed


class Starting:
    """The start of *actors* by their *names*, *timeout_s* seconds a call."""

    def __init__(self, actors: Sequence[Any], names: Sequence[str], timeout_s: float) -> None:
        self._actors = actors
        self._names = names
        self._timeout_s = timeout_s
        self._found: dict[int, Whereabouts] = {}

    async def find(self) -> list[Whereabouts]:
        """Where they are. Raises StartFailed."""
        found = await self.call("whereabouts")
        self._found = dict(enumerate(found))
        return found

    async def check_machines(self, others: Iterable[str] = ()) -> list[Whereabouts]:
        """Whether their machines are fit for them, and for the *others* of their kind, whose nodes these are.

        Raises ConfigError, or StartFailed.
        """
        found = [self._found[index] for index in range(len(self._actors))] if self._found else await self.find()
        here = Counter([*others, *(place.node_id for place in found)])
        checks = [
            actor.check_machine.remote(here[place.node_id]) for actor, place in zip(self._actors, found, strict=True)
        ]
        await asyncio.gather(*(self._one(index, check) for index, check in enumerate(checks)))
        return found

    async def call(self, method: str, *args: Any) -> list[Any]:
        """The results of *method* of all actors, called at once. Raises ConfigError, or StartFailed."""
        calls = [getattr(actor, method).remote(*args) for actor in self._actors]
        return await asyncio.gather(*(self._one(index, call) for index, call in enumerate(calls)))

    async def _one(self, index: int, call: Awaitable[Any]) -> Any:
        what = self._names[index]
        try:
            return await within(self._timeout_s, f"start of {what}", call)
        except (RayError, WorkerTimeout, UnfitMachine) as error:
            place = self._found.get(index)
            where = f"{what} on {place.address}" if place else what
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, UnfitMachine):
                raise ConfigError(f"{where}: {cause}") from None
            said = await last_words(place) if place else ""
            raise StartFailed(f"{where} did not start: {type(cause).__name__}: {cause}{said}") from error
