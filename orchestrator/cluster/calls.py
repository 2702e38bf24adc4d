"""Calls to Ray actors, each with a deadline: a hung worker raises nothing by itself, ever."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

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


async def each(actors: Sequence[Any], timeout_s: float, what: str, method: str, *args: Any) -> list[Any]:
    """The results of one method of all *actors*, called at once."""
    calls = [getattr(actor, method).remote(*args) for actor in actors]
    return await asyncio.gather(*(within(timeout_s, f"{what} ({index})", call) for index, call in enumerate(calls)))


class Pool:
    """Hands each call to the actor with the fewest in flight."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = list(actors)
        self._in_flight = [0] * len(actors)

    def add(self, actor: Any) -> None:
        """From now on it is called too."""
        self.actors.append(actor)
        self._in_flight.append(0)

    async def call(self, timeout_s: float, what: str, method: str, *args: Any) -> Any:
        index = self._in_flight.index(min(self._in_flight))
        self._in_flight[index] += 1
        try:
            return await within(timeout_s, what, getattr(self.actors[index], method).remote(*args))
        finally:
            self._in_flight[index] -= 1
