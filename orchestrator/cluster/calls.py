"""Calls to Ray actors, each with a deadline: a hung worker raises nothing by itself, ever."""

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, TypeVar

from ray.exceptions import ActorUnschedulableError, RayActorError, RayTaskError

from reward_service.actor import WorkerSpent
from rollout.engine import WorkerLost

T = TypeVar("T")


class WorkerTimeout(RuntimeError):
    """A worker did not answer within its deadline."""


LOST = (RayActorError, ActorUnschedulableError, WorkerTimeout, WorkerLost, WorkerSpent)
"""What a call raises where the worker, and not what it was asked, is the cause: another can be asked."""


def cause_of(error: BaseException) -> BaseException:
    """What the worker itself raised, if *error* is that."""
    return error.cause if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException) else error


def in_a_line(error: BaseException) -> str:
    """Its kind and the first line of what it says; of what a worker raised, without what Ray made of it."""
    cause = cause_of(error)
    return f"{type(cause).__name__}: {cause}".strip().split("\n")[0]


def check_not_raised(results: Iterable[Any]) -> None:
    """Raise the first error among *results* that is not that of a worker which is lost."""
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, LOST):
            raise result


async def within(timeout_s: float, what: str, call: Awaitable[T]) -> T:
    """The result of *call*. Raises WorkerTimeout, which names *what*, after *timeout_s* seconds."""

    async def waiting() -> T:
        return await call

    try:
        return await asyncio.wait_for(waiting(), timeout_s)
    except TimeoutError as error:
        raise WorkerTimeout(f"{what} did not answer within {timeout_s:g} s") from error


async def each(actors: Sequence[Any], timeout_s: float, what: str, method: str, *args: Any) -> list[Any]:
    """The results of one method of all *actors*, called at once.

    Ray's pages show *what*, and so does its metric of tasks, as a label: nothing in it may count up.
    """
    calls = [getattr(actor, method).options(name=what).remote(*args) for actor in actors]
    return await asyncio.gather(*(within(timeout_s, f"{what} ({index})", call) for index, call in enumerate(calls)))
