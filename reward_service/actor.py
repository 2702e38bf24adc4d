"""One scoring worker: a plain class, made a Ray actor where the orchestrator places it.

Its calls interleave on one event loop; rules run on threads, a fixed number of samples at a time. Others wait for a
place, and `load` tells how long.
"""

import asyncio
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from records.samples import Score, ScoringFailure
from records.task import load_task
from reward_service.load import Busy
from reward_service.rules import load_rule, score


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a rule is shown of a sample."""

    sample_id: str
    text: str
    gold: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringLoad:
    """Of one worker since it was last asked, in seconds.

    *busy_s*: a rule was at work. *full_s*: every place was taken and samples waited. *longest_wait_s*: the longest that
    a sample waited for a place.
    """

    busy_s: float
    full_s: float
    longest_wait_s: float


class RewardWorker:
    """Holds no state but the rule, so any worker may score any sample again."""

    def __init__(self, task: str, rule: str, options: BaseModel, concurrent_samples: int) -> None:
        """*task* is the name of one, *rule* one of its rules or an import path, and *options* are the task's.

        Raises ValueError when the task or the rule cannot be imported.
        """
        self._task = load_task(task)
        self._rule = load_rule(self._task, rule, options)
        self._threads = ThreadPoolExecutor(concurrent_samples, thread_name_prefix="rule")
        self._places = asyncio.Semaphore(concurrent_samples)
        self._busy, self._full = Busy(), Busy()
        self._waiting_since: list[float] = []
        self._longest_wait_s = 0.0

    async def score(self, replies: Sequence[Reply]) -> list[Score | ScoringFailure]:
        """One for each of *replies*, in order: a failure, with the traceback as its cause, where the rule raised or
        returned no finite numbers.
        """
        return await asyncio.gather(*(self._score(reply) for reply in replies))

    async def load(self) -> ScoringLoad:
        """Since the last call."""
        waits = [self._longest_wait_s, *(time.monotonic() - since for since in self._waiting_since)]
        self._longest_wait_s = 0.0
        return ScoringLoad(busy_s=self._busy.take(), full_s=self._full.take(), longest_wait_s=max(waits))

    async def _score(self, reply: Reply) -> Score | ScoringFailure:
        if self._places.locked():
            await self._wait_for_place()
        else:
            await self._places.acquire()
        try:
            with self._busy:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._threads, score, self._task, self._rule, reply.text, reply.gold)
        except Exception:  # whatever a user's rule may raise
            return ScoringFailure(reply.sample_id, traceback.format_exc())
        finally:
            self._places.release()

    async def _wait_for_place(self) -> None:
        since = time.monotonic()
        self._waiting_since.append(since)
        try:
            with self._full:
                await self._places.acquire()
        finally:
            self._waiting_since.remove(since)
            self._longest_wait_s = max(self._longest_wait_s, time.monotonic() - since)
