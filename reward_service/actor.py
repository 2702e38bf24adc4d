"""One scoring worker: a plain class, made a Ray actor where the orchestrator places it.

Its calls interleave on one event loop; rules run on threads, a fixed number of samples at a time. Others wait for a
place, and `load` tells how long. A thread cannot be ended: a worker whose rule worked on a sample for too long, or that
holds too much memory, is spent. It scores no more, says why (`condition`), and must be replaced by who made it.
"""

import asyncio
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from records.samples import Score, ScoringFailure
from records.task import load_task
from reward_service.limits import Work, resident_mib
from reward_service.load import Busy
from reward_service.rules import load_rule, score

MEMORY_LOOK_S = 0.1
"""Between two looks at the memory, while rules work."""
LAST_MOMENT_S = 0.1
"""In which samples may still end when their worker is spent: those that began together are late together."""


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


class WorkerSpent(RuntimeError):
    """This worker scores no more, and the text says why. What it was asked is not scored: another one can be asked."""


class RewardWorker:
    """Holds no state but the rule, so any worker may score any sample again."""

    def __init__(
        self,
        task: str,
        rule: str,
        options: BaseModel,
        concurrent_samples: int,
        rule_timeout_s: float = 30.0,
        memory_mib: int = 2048,
    ) -> None:
        """*task* is the name of one, *rule* one of its rules or an import path, and *options* are the task's.

        Raises ValueError when the task or the rule cannot be imported, or *memory_mib* are too few for them alone.
        """
        self._task = load_task(task)
        self._rule = load_rule(self._task, rule, options)
        self.rule_name = rule
        self._rule_timeout_s, self._memory_mib = rule_timeout_s, memory_mib
        self._threads = ThreadPoolExecutor(concurrent_samples, thread_name_prefix="rule")
        self._places = asyncio.Semaphore(concurrent_samples)
        self._busy, self._full = Busy(), Busy()
        self._waiting_since: list[float] = []
        self._longest_wait_s = 0.0
        self._working: list[str] = []
        self._given = self._ended = 0
        self._spent: str | None = None
        self._ends: set[asyncio.Timeout] = set()
        self._watching: asyncio.Task[None] | None = None
        if (held := resident_mib()) > memory_mib:
            raise ValueError(
                f"reward_service.memory_mib is {memory_mib}, and a worker holds {held:.0f} MiB before its first "
                "sample; raise it"
            )

    async def score(self, replies: Sequence[Reply]) -> list[Score | ScoringFailure | WorkerSpent]:
        """One for each of *replies*, in order: a failure, with the traceback as its cause, where the rule raised,
        returned no finite numbers or took too long; WorkerSpent where it had not ended when the worker became spent.

        Raises WorkerSpent if that is all there is.
        """
        if self._spent is not None:
            raise self._refusal()
        samples = [asyncio.create_task(self._score(reply)) for reply in replies]
        end = asyncio.timeout(None)
        try:
            with suppress(TimeoutError):
                async with end:
                    self._ends.add(end)
                    await asyncio.wait(samples)
            results = [sample.result() if sample.done() else self._refusal() for sample in samples]
        finally:
            self._ends.discard(end)
            for sample in samples:
                sample.cancel()
        if all(isinstance(result, WorkerSpent) for result in results):
            raise self._refusal()
        return results

    async def load(self) -> ScoringLoad:
        """Since the last call."""
        waits = [self._longest_wait_s, *(time.monotonic() - since for since in self._waiting_since)]
        self._longest_wait_s = 0.0
        return ScoringLoad(busy_s=self._busy.take(), full_s=self._full.take(), longest_wait_s=max(waits))

    async def condition(self) -> str | None:
        """Why this worker must be replaced, naming the sample or samples; None while it is fit."""
        self._check_memory()
        return self._spent

    async def progress(self) -> tuple[int, int]:
        """Samples that have ended since the start, scored or not, and samples that it has now, at work or waiting."""
        return self._ended, self._given - self._ended

    async def _score(self, reply: Reply) -> Score | ScoringFailure:
        self._given += 1
        try:
            if self._places.locked():
                await self._wait_for_place()
            else:
                await self._places.acquire()
            try:
                return await self._apply_rule(reply)
            finally:
                self._places.release()
        finally:
            self._ended += 1

    async def _apply_rule(self, reply: Reply) -> Score | ScoringFailure:
        self._working.append(reply.sample_id)
        self._watch_memory()
        try:
            work = Work(self._threads, score, self._task, self._rule, reply.text, reply.gold)
            with self._busy:
                if await work.ends_within(self._rule_timeout_s):
                    return work.result()
            limit = (
                f"the rule {self.rule_name!r} worked on it for more than {self._rule_timeout_s:g} s, which "
                "reward_service.rule_timeout_s allows; raise that, or have the rule end sooner"
            )
            self._spend(f"sample {reply.sample_id}: {limit}")
            return ScoringFailure(reply.sample_id, f"{limit}. It was here:\n{work.where()}")
        except Exception:  # whatever a user's rule may raise
            return ScoringFailure(reply.sample_id, traceback.format_exc())
        finally:
            self._working.remove(reply.sample_id)

    async def _wait_for_place(self) -> None:
        since = time.monotonic()
        self._waiting_since.append(since)
        try:
            with self._full:
                await self._places.acquire()
        finally:
            self._waiting_since.remove(since)
            self._longest_wait_s = max(self._longest_wait_s, time.monotonic() - since)

    def _watch_memory(self) -> None:
        """From now on until no rule works."""
        if self._watching is None or self._watching.done():
            self._watching = asyncio.get_running_loop().create_task(self._keep_watching())

    async def _keep_watching(self) -> None:
        while self._working and self._spent is None:
            self._check_memory()
            await asyncio.sleep(MEMORY_LOOK_S)

    def _check_memory(self) -> None:
        if (held := resident_mib()) > self._memory_mib:
            self._spend(
                f"it holds {held:.0f} MiB, and reward_service.memory_mib allows {self._memory_mib}; raise that, or "
                f"have the rule {self.rule_name!r} keep less. Samples at work: {', '.join(self._working) or 'none'}"
            )

    def _spend(self, why: str) -> None:
        """The first cause counts. Calls end in a moment, whatever they wait for: another worker can be asked."""
        if self._spent is None:
            self._spent = why
            for end in self._ends:
                end.reschedule(asyncio.get_running_loop().time() + LAST_MOMENT_S)

    def _refusal(self) -> WorkerSpent:
        return WorkerSpent(f"this reward worker scores no more: {self._spent}")
