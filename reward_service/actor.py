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

from reward_service.config import RewardConfig
from reward_service.rules import load_rule, score
from tvr.records import Gold, Score, ScoringFailure


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a rule is shown of a sample."""

    sample_id: str
    text: str
    gold: Gold


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringLoad:
    """Of one worker since it was last asked, in seconds.

    *full_s*: every place was taken and samples waited. *longest_wait_s*: the longest that a sample waited for a place.
    """

    full_s: float
    longest_wait_s: float


class RewardWorker:
    """Holds no state but the rule, so any worker may score any sample again."""

    def __init__(self, config: RewardConfig) -> None:
        """Raises ValueError when the rule cannot be imported."""
        self._rule = load_rule(config)
        self._threads = ThreadPoolExecutor(config.concurrent_samples, thread_name_prefix="rule")
        self._places = asyncio.Semaphore(config.concurrent_samples)
        self._waiting_since: dict[int, float] = {}
        self._tickets = 0
        self._full_since = 0.0
        self._full_s = 0.0
        self._longest_wait_s = 0.0

    async def score(self, replies: Sequence[Reply]) -> list[Score | ScoringFailure]:
        """One for each of *replies*, in order: a failure, with the traceback as its cause, where the rule raised or
        returned no finite numbers.
        """
        return await asyncio.gather(*(self._score(reply) for reply in replies))

    async def load(self) -> ScoringLoad:
        """Since the last call."""
        now = time.monotonic()
        if self._waiting_since:
            self._full_s += now - self._full_since
        waits = [now - since for since in self._waiting_since.values()]
        load = ScoringLoad(full_s=self._full_s, longest_wait_s=max([self._longest_wait_s, *waits]))
        self._full_s = self._longest_wait_s = 0.0
        self._full_since = now
        return load

    async def _score(self, reply: Reply) -> Score | ScoringFailure:
        await self._take_place()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, score, self._rule, reply.text, reply.gold
            )
        except Exception:  # whatever a user's rule may raise
            return ScoringFailure(reply.sample_id, traceback.format_exc())
        finally:
            self._places.release()

    async def _take_place(self) -> None:
        if not self._places.locked():
            await self._places.acquire()
            return
        since = time.monotonic()
        if not self._waiting_since:
            self._full_since = since
        self._tickets += 1
        ticket = self._tickets
        self._waiting_since[ticket] = since
        try:
            await self._places.acquire()
        finally:
            now = time.monotonic()
            del self._waiting_since[ticket]
            self._longest_wait_s = max(self._longest_wait_s, now - since)
            if not self._waiting_since:
                self._full_s += now - self._full_since
