"""Scoring by Ray actors, asked by the rollout workers themselves: no sample passes through the driver to be scored."""

import asyncio
from typing import Any

from orchestrator.cluster.calls import Pool, each
from records.samples import Sample, Score, ScoringFailure
from reward_service.actor import Reply, ScoringLoad


class RayScorer:
    """`rollout.actor.Scorer` on actors of `reward_service.actor.RewardWorker`.

    The driver makes it and each rollout worker gets a copy. Samples that end in the same turn of a worker's event loop,
    that is, in the same step of its engine, travel in one call.
    """

    def __init__(self, actors: list[Any], timeout_s: float) -> None:
        self._actors = actors
        self._timeout_s = timeout_s
        self._pool = Pool(actors)
        self._ended: list[tuple[Reply, asyncio.Future[Score]]] = []
        self._calls: set[asyncio.Task[None]] = set()

    def __reduce__(self) -> Any:
        return RayScorer, (self._actors, self._timeout_s)

    async def start(self, timeout_s: float) -> None:
        await each(self._actors, timeout_s, "start of a reward worker", "load")

    async def score(self, gold: Any, sample: Sample) -> Score:
        """Raises ScoringFailure."""
        loop = asyncio.get_running_loop()
        if not self._ended:
            loop.call_soon(self._send)
        scored: asyncio.Future[Score] = loop.create_future()
        self._ended.append((Reply(sample_id=sample.id, text=sample.text, gold=gold), scored))
        return await scored

    async def load(self) -> list[ScoringLoad]:
        """By reward worker, since the last call."""
        return await each(self._actors, self._timeout_s, "load of a reward worker", "load")

    def _send(self) -> None:
        ended, self._ended = self._ended, []
        call = asyncio.get_running_loop().create_task(self._score(ended))
        self._calls.add(call)  # the loop itself would not keep it
        call.add_done_callback(self._calls.discard)

    async def _score(self, ended: list[tuple[Reply, "asyncio.Future[Score]"]]) -> None:
        replies = [reply for reply, _ in ended]
        what = f"scoring of {replies[0].sample_id}" + (f" and {len(ended) - 1} more" if len(ended) > 1 else "")
        try:
            results = await self._pool.call(self._timeout_s, what, "score", replies)
        except Exception as error:  # the call as a whole: each sample fails, and keeps the cause
            results = [ScoringFailure(reply.sample_id, str(error)) for reply in replies]
        for (_, scored), result in zip(ended, results, strict=True):
            if scored.done():  # cancelled: nobody waits for it any more
                continue
            if isinstance(result, ScoringFailure):
                scored.set_exception(result)
            else:
                scored.set_result(result)
