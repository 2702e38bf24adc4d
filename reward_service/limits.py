"""What a rule takes of its process: time on a thread, which can be looked at and not be ended, and memory."""

import asyncio
import os
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Work(Generic[T]):
    """*do* with *args* on one of *threads*, from now on."""

    def __init__(self, threads: Executor, do: Callable[..., T], *args: Any) -> None:
        self._thread: int | None = None
        self._future = asyncio.get_running_loop().run_in_executor(threads, self._run, do, args)

    async def ends_within(self, timeout_s: float) -> bool:
        """Whether it has ended, which it does not by itself after *timeout_s* seconds."""
        ended, _ = await asyncio.wait({self._future}, timeout=timeout_s)
        return bool(ended)

    def result(self) -> T:
        """Of work that has ended. Raises what it raised."""
        return self._future.result()

    def where(self) -> str:
        """The stack of work that goes on."""
        frame = sys._current_frames().get(self._thread) if self._thread is not None else None
        return "".join(traceback.format_stack(frame)) if frame is not None else "(its thread is not to be seen)"

    def _run(self, do: Callable[..., T], args: tuple[Any, ...]) -> T:
        self._thread = threading.get_ident()
        return do(*args)


def resident_mib() -> float:
    """What this process holds in memory, pages of files and of shared memory included.

    Its address space tells nothing: that of a worker of Ray is 50 times as large.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
