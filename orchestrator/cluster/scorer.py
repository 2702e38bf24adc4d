"""Scoring by Ray actors, asked by the rollout workers themselves: no sample passes through the driver to be scored."""

import asyncio
from collections.abc import Mapping
from typing import Any

from ray.exceptions import ActorUnavailableError

from orchestrator.cluster.calls import LOST, WorkerTimeout, within
from records.samples import Sample, Score, ScoringFailure
from reward_service.actor import Reply, WorkerSpent

TRIES = 3
"""How many reward workers a sample may end before it fails by its name."""
UNAVAILABLE_S = 0.2


class RayScorer:
    """`rollout.actor.Scorer` on actors of `reward_service.actor.RewardWorker`, by name: each rollout worker has one.

    Samples that end in the same turn of a worker's event loop, that is, in the same step of its engine, travel in one
    call, to the actor with the fewest calls in flight. A worker that is lost is not asked again, and what it was asked
    is asked of another, which the driver names (`use`).
    """

    def __init__(self, actors: Mapping[str, Any], timeout_s: float) -> None:
        self._actors = dict(actors)
        self._timeout_s = timeout_s
        self._in_flight = dict.fromkeys(self._actors, 0)
        self._lost: set[str] = set()
        self._named = asyncio.Event()
        self._ended: list[tuple[Reply, asyncio.Future[Score]]] = []
        self._calls: set[asyncio.Task[None]] = set()

    def __reduce__(self) -> Any:
        return RayScorer, (self._actors, self._timeout_s)

    def use(self, actors: Mapping[str, Any]) -> None:
        """From now on these, but for those that were found lost."""
        self._actors = {name: actor for name, actor in actors.items() if name not in self._lost}
        self._in_flight = {name: self._in_flight.get(name, 0) for name in self._actors}
        self._named.set()
        self._named = asyncio.Event()

    async def score(self, gold: Any, sample: Sample) -> Score:
        """Raises ScoringFailure."""
        loop = asyncio.get_running_loop()
        if not self._ended:
            loop.call_soon(self._send)
        scored: asyncio.Future[Score] = loop.create_future()
        self._ended.append((Reply(sample_id=sample.id, text=sample.text, gold=gold), scored))
        return await scored

    def _send(self) -> None:
        ended, self._ended = self._ended, []
        call = asyncio.get_running_loop().create_task(self._score(ended))
        self._calls.add(call)  # the loop itself would not keep it
        call.add_done_callback(self._calls.discard)

    async def _score(self, ended: list[tuple[Reply, "asyncio.Future[Score]"]]) -> None:
        for index, result in (await self._results([reply for reply, _ in ended])).items():
            scored = ended[index][1]
            if scored.done():  # cancelled: nobody waits for it any more
                continue
            if isinstance(result, ScoringFailure):
                scored.set_exception(result)
            else:
                scored.set_result(result)

    async def _results(self, replies: list[Reply]) -> dict[int, Score | ScoringFailure]:
        """Of each reply, by its place; those that a worker did not begin are asked of another."""
        results: dict[int, Score | ScoringFailure] = {}
        while left := [index for index in range(len(replies)) if index not in results]:
            try:
                found = await self._ask([replies[index] for index in left])
            except Exception as error:  # the call as a whole: each sample fails, and keeps the cause
                found = [ScoringFailure(replies[index].sample_id, str(error)) for index in left]
            results |= {
                index: result for index, result in zip(left, found, strict=True) if not isinstance(result, WorkerSpent)
            }
        return results

    async def _ask(self, replies: list[Reply]) -> list[Score | ScoringFailure | WorkerSpent]:
        what = f"scoring of {replies[0].sample_id}" + (f" and {len(replies) - 1} more" if len(replies) > 1 else "")
        tried = 0
        while True:
            while not self._actors:
                await self._named.wait()
            name = min(self._actors, key=lambda it: self._in_flight[it])
            self._in_flight[name] += 1
            try:
                call = self._actors[name].score.options(name="scoring").remote(replies)
                return await within(self._timeout_s, f"{what} by {name}", call)
            except ActorUnavailableError:  # it may be back in a moment, or be found dead then
                await asyncio.sleep(UNAVAILABLE_S)
            except LOST as error:
                if not isinstance(error, WorkerTimeout):  # one that is slow may be asked again
                    self._lost.add(name)
                    self._actors.pop(name, None)
                tried += 1
                if tried == TRIES:
                    raise
            finally:
                if name in self._in_flight:
                    self._in_flight[name] -= 1
