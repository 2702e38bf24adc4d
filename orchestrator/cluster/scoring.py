"""The reward workers: each a Ray actor; who they are is told to those that ask them (`scorer.py`)."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayActorError

from orchestrator.cluster.calls import check_not_raised, within
from orchestrator.cluster.crew import ActorHand, Crew, supervise
from orchestrator.cluster.on_node import OnNode
from orchestrator.cluster.placement import reward_bundle
from orchestrator.cluster.ready import Starting
from orchestrator.cluster.scorer import RayScorer
from orchestrator.config import StartFailed
from orchestrator.supervision.supervisor import Pulse
from records.samples import Sample, Score
from reward_service.actor import RewardWorker, ScoringLoad, WorkerSpent

logger = logging.getLogger(__name__)

MANY_CALLS = 10_000
DRAIN_POLL_S = 0.2


class RewardActor(OnNode, RewardWorker):
    """As it is."""

    def job(self) -> str:
        return f"rule {self.rule_name}"

    async def pulse(self) -> tuple[int, bool]:
        """Samples scored since it started, and whether it has others. Raises WorkerSpent if it must be replaced."""
        if (why := await self.condition()) is not None:
            raise WorkerSpent(why)
        scored, in_work = await self.progress()
        return scored, in_work > 0


class RewardHand(ActorHand):
    """One reward worker."""

    async def start(self, placed: Callable[[], None]) -> int:
        config, rewards = self.crew.config, self.crew.config.reward_service
        place = await self.take_room(reward_bundle(), placed, apart=True)
        actor = place.actor(RewardActor, self.name, max_concurrency=MANY_CALLS)
        limits = (rewards.rule_timeout_s, rewards.memory_mib)
        self.actor = actor.remote(config.task, rewards.rule, rewards.options, rewards.concurrent_samples, *limits)
        try:
            self.settle((await Starting([self.actor], [self.name], config.start_timeout_s).find())[0])
        except StartFailed as error:
            raise self.crew.judge(error) from error.__cause__
        self.crew.was_ready = True
        return 0

    async def load(self, version: int) -> int:
        return version  # it knows no weights

    async def look(self) -> Pulse:
        return Pulse(*(await self.actor.pulse.remote()))

    async def drain(self) -> None:
        """The rollout workers ask it nothing new."""
        while (await self.look()).has_work:  # noqa: ASYNC110 - it is in another process
            await asyncio.sleep(DRAIN_POLL_S)


class RayScorers:
    """The reward workers as the driver has them: each rollout worker is told who they are, whenever that changes."""

    def __init__(self, crew: Crew) -> None:
        self.crew = crew
        self._tell_others, crew.tell = crew.tell, self._told
        self.supervisor = supervise("reward", crew.config.reward_service.workers, crew, RewardHand)
        self._timeout_s = crew.config.reward_service.timeout_s
        self._own = RayScorer({}, self._timeout_s)
        self._askers: dict[str, Any] = {}
        self._telling: set[asyncio.Task[None]] = set()

    async def score(self, gold: Any, sample: Sample) -> Score:
        """Raises ScoringFailure."""
        return await self._own.score(gold, sample)

    async def load(self) -> list[ScoringLoad]:
        """By reward worker that serves, since the last call."""
        calls = [
            within(self._timeout_s, f"load of {name}", actor.load.remote()) for name, actor in self._actors.items()
        ]
        found = await asyncio.gather(*calls, return_exceptions=True)
        check_not_raised(found)
        return [load for load in found if isinstance(load, ScoringLoad)]  # who is lost is replaced, and has no load

    def for_asker(self) -> RayScorer:
        """What a rollout worker is made with."""
        return RayScorer({}, self._timeout_s)

    async def introduce(self, name: str, asker: Any) -> None:
        """The rollout worker *name* asks them from now on."""
        self._askers[name] = asker
        await asker.use_scorers.remote(self._actors)

    def forget(self, name: str) -> None:
        self._askers.pop(name, None)

    def _told(self, event: str, **facts: Any) -> None:
        """Something has happened to one of them: there are others than before, perhaps."""
        self._tell_others(event, **facts)
        self._own.use(self._actors)
        for name in self._askers:
            task = asyncio.get_running_loop().create_task(self._tell(name))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _tell(self, name: str) -> None:
        try:
            await self._askers[name].use_scorers.remote(self._actors)
        except RayActorError:
            logger.info("%s is gone, and need not know of the reward workers", name)

    @property
    def _actors(self) -> dict[str, Any]:
        return {name: hand.actor for name, hand in self.supervisor.hands.items()}
