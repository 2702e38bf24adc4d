"""A run that is asked to stop: by Ctrl-C, or by the SIGTERM of a scheduler. A second request ends it at once."""

import asyncio
import signal
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def cancelled_by_sigterm() -> Iterator[None]:
    """SIGTERM cancels the current task, as Ctrl-C does. The default would leave files in shared memory behind."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def to_its_end(call: Awaitable[T]) -> tuple[T, bool]:
    """The result of *call*, and whether the caller was cancelled meanwhile: then it has to stop as soon as it can.

    For a call that happens elsewhere and cannot be taken back, so that its result must not be lost.
    """
    made = asyncio.ensure_future(call)
    try:
        return await asyncio.shield(made), False
    except asyncio.CancelledError:
        return await made, True
