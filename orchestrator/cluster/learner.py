"""The learner, which outlives its ranks: `loop.roles.Learner`, however often they are replaced.

Ranks that are lost are replaced together: by others that go on from the newest whole checkpoint, and make the steps
since then again from the groups that the run has kept (`History`). So nothing is sampled twice, and on a machine that
computes the same twice the weights come out the same. What was asked when they were lost is asked again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import numpy as np
from ray.exceptions import RayActorError

from learner.config import LearnerJob
from orchestrator.cluster.calls import LOST, WorkerTimeout, in_a_line, within
from orchestrator.cluster.crew import Crew, end_hung
from orchestrator.cluster.learner_actor import WATCH, LearnerActor
from orchestrator.cluster.on_node import last_words
from orchestrator.cluster.placement import PLACED_WITHIN_S, Place, give_back, place_learner
from orchestrator.cluster.ranks import Checkpoints, LearnerRanks
from orchestrator.config import ConfigError, StartFailed
from orchestrator.loop.roles import Exported
from orchestrator.supervision.supervisor import Pulse, Supervisor, Unfit
from records.samples import PolicyVersion, Prompt, SampleGroup, ScoredGroup, StepReport

logger = logging.getLogger(__name__)

T = TypeVar("T")
LEARNER = "learner"
"""What the names of its generations of ranks begin with."""
MAKING_AGAIN = "making again"
"""The event that ranks are about to make steps once more."""
TRIES = 5
"""How many groups of ranks a call may end before it is taken for the cause."""
DEATH_S = 5.0
"""Within which Ray tells that an actor has died."""


class History(Protocol):
    """What the run has kept of its steps."""

    def checkpoints(self) -> Checkpoints | None:
        """Those that are there now."""
        ...

    def kept(self, after: PolicyVersion, until: PolicyVersion | None) -> list[PolicyVersion]:
        """Steps behind *after*, up to *until* if it is known, without a gap, that can be made again."""
        ...

    async def make_again(self, ranks: LearnerRanks, step: PolicyVersion) -> StepReport:
        """Have *ranks*, which are at the version before, make *step* as it was made."""
        ...

    def forget(self) -> None:
        """A checkpoint was written: what none that is left needs can go."""
        ...


class Nothing:
    """`History` of a run that keeps nothing: ranks that are lost leave none to go on from but the first version."""

    def checkpoints(self) -> None:
        return None

    def kept(self, after: PolicyVersion, until: PolicyVersion | None) -> list[PolicyVersion]:
        return []

    async def make_again(self, ranks: LearnerRanks, step: PolicyVersion) -> StepReport:
        raise AssertionError(f"step {step} was not kept")

    def forget(self) -> None:
        """There is nothing."""


class LearnerCrew(Crew):
    """The learner's ranks, one generation after another. *version* is that which the run has; None before it is known.

    *passed* is called when ranks that replace others come by a version.
    """

    def __init__(self, job: LearnerJob, history: History, **common: Any) -> None:
        super().__init__(**common)
        self.job = job
        self.history = history
        self.version: PolicyVersion | None = None
        self.made_again: dict[PolicyVersion, StepReport] = {}
        self.passed: Callable[[LearnerRanks, PolicyVersion], Awaitable[None]] | None = None


class LearnerHand:
    """One generation of ranks."""

    def __init__(self, name: str, crew: LearnerCrew) -> None:
        self.name = name
        self.crew = crew
        self.places: list[Place] = []
        self.ranks: LearnerRanks | None = None
        self.busy = False

    async def start(self, placed: Callable[[], None]) -> int:
        """Place them, and bring them to the version that the run has."""
        crew, config = self.crew, self.crew.config
        self.places = await self._place()
        crew.learner_placed.set()
        placed()
        actors = [
            place.actor(LearnerActor, f"{self.name}-rank-{rank}", concurrency_groups={WATCH: 1}).remote(
                config.learner, crew.job, rank, len(self.places)
            )
            for rank, place in enumerate(self.places)
        ]
        self.ranks = LearnerRanks(actors, config.learner, config.checkpoint.timeout_s)
        try:
            version = await self.ranks.start(config.start_timeout_s, crew.history.checkpoints())
        except Exception as error:
            raise crew.judge(error) from error.__cause__
        for rank, where in enumerate(self.ranks.places):
            crew.tell(
                "runs", worker=f"{self.name} rank {rank}", address=where.address, node=where.node_id, pid=where.pid
            )
        await self._catch_up(self.ranks, version)
        crew.was_ready = True
        return 0

    async def look(self) -> Pulse:
        assert self.ranks is not None
        return Pulse(await self.ranks.completed(), self.busy)

    async def load(self, version: int) -> int:
        raise AssertionError("the learner makes versions, and loads none")

    async def drain(self) -> None:
        raise AssertionError("the learner does not leave")

    async def kill(self, keep_stacks: bool) -> None:
        self.crew.learner_placed.clear()
        if keep_stacks and self.ranks is not None:
            await end_hung(self.name, self.ranks.places, self.crew.folder)

    async def free(self) -> None:
        give_back(self.places)

    async def last_words(self) -> str:
        places = [] if self.ranks is None else self.ranks.places
        return "".join([await last_words(place) for place in places])

    async def _place(self) -> list[Place]:
        """Raises Unfit where there is no room and the run has not begun; later it waits for some."""
        said = False
        while True:
            try:
                return await place_learner(self.crew.config, self.name)
            except ConfigError as error:
                if not self.crew.was_ready:
                    raise Unfit from error
                if not said:
                    self.crew.tell("waiting", worker=self.name, why=str(error))
                    said = True
                await asyncio.sleep(PLACED_WITHIN_S)

    async def _catch_up(self, ranks: LearnerRanks, version: PolicyVersion) -> None:
        crew, kept = self.crew, self.crew.history.kept(version, self.crew.version)
        if crew.version is not None and crew.version - version > len(kept):
            error = StartFailed(
                f"the learner is to go on from version {crew.version}, and there is only the checkpoint of {version}: "
                f"the groups of step {version + len(kept) + 1} are not whole; the same command with --resume makes "
                "the steps since then of new ones"
            )
            raise Unfit from error
        if crew.passed is not None:
            await crew.passed(ranks, version)
        if kept:
            crew.tell(MAKING_AGAIN, worker=self.name, steps=len(kept))
        for step in kept:
            report = await crew.history.make_again(ranks, step)
            crew.tell("made again", step=step)
            if crew.version is None:
                crew.made_again[step] = report
            version = step
            if crew.passed is not None:
                await crew.passed(ranks, version)
        if crew.version is None:
            crew.version = version


class RayLearner:
    """`loop.roles.Learner` on the ranks of a supervisor."""

    def __init__(self, supervisor: Supervisor[LearnerHand], crew: LearnerCrew) -> None:
        self.supervisor = supervisor
        self._crew = crew

    @property
    def version(self) -> PolicyVersion:
        """That of the weights. Known when the first ranks are ready."""
        assert self._crew.version is not None, "the learner's ranks are not ready"
        return self._crew.version

    @property
    def made_again(self) -> dict[PolicyVersion, StepReport]:
        """The steps that the first ranks have made again."""
        return self._crew.made_again

    async def ready(self) -> None:
        """Return when there are ranks. Raises what keeps them from starting."""
        await self.supervisor.until(lambda: bool(self.supervisor.hands))

    async def address(self, timeout_s: float) -> tuple[str, int]:
        """Rank 0's, with a port that is free now."""
        return await self._ask("address", lambda ranks: ranks.address(timeout_s))

    async def step(self, groups: tuple[ScoredGroup, ...]) -> StepReport:
        return self._learned(await self._ask("step", lambda ranks: ranks.step(groups), watched=True))

    async def imitate(self, prompts: tuple[Prompt, ...], answers: tuple[str, ...]) -> StepReport:
        """One supervised update on the right *answers* to *prompts*; makes the next version."""
        return self._learned(await self._ask("step", lambda ranks: ranks.imitate(prompts, answers), watched=True))

    async def checkpoint(self) -> None:
        await self._ask("checkpoint", lambda ranks: ranks.checkpoint())
        self._crew.history.forget()

    async def finish_checkpoint(self) -> None:
        """Return when the last checkpoint is on disk. Raises what its writing raised."""
        await self._ask("writing of the checkpoint", lambda ranks: ranks.finish_checkpoint())

    async def snapshot_bytes(self) -> dict[str, int]:
        """By host, how much of its memory a checkpoint takes while it is written; together they are its size."""
        return await self._ask("size of a checkpoint", lambda ranks: ranks.snapshot_bytes())

    async def export(self, version: PolicyVersion) -> Exported:
        return await self._ask("export", lambda ranks: ranks.export(version), watched=True)

    async def save(self, folder: str) -> None:
        await self._ask("saving of the model", lambda ranks: ranks.save(folder))

    async def logprobs(self, groups: tuple[SampleGroup, ...]) -> list[list[list[np.ndarray]]]:
        """By rank, group and sample: what the newest version gives the sampled tokens, `[La]` nats."""
        return await self._ask("log-probs", lambda ranks: ranks.logprobs(groups), watched=True)

    async def call(self, what: str, method: str, *args: Any) -> list[Any]:
        """What each rank returned."""
        return await self._ask(what, lambda ranks: ranks.call(what, method, *args))

    def _learned(self, report: StepReport) -> StepReport:
        self._crew.version = report.version
        return report

    async def _ask(self, what: str, call: Callable[[LearnerRanks], Awaitable[T]], watched: bool = False) -> T:
        """What *call* returns, of one generation of ranks or another; *watched*: it makes progress, or hangs."""
        for tried in range(1, TRIES + 1):
            async with self.supervisor.serving() as (name, hand):
                assert hand.ranks is not None
                hand.busy = watched
                try:
                    return await call(hand.ranks)
                except Exception as error:
                    if not await _is_lost(hand.ranks, error) or tried == TRIES:
                        raise
                    lost = error
                finally:
                    hand.busy = False
            logger.warning("%s was lost in %s, which is done again by others", name, what)
            self.supervisor.lost(name, in_a_line(lost), hung=isinstance(lost, WorkerTimeout))
        raise AssertionError(what)


async def _is_lost(ranks: LearnerRanks, error: Exception) -> bool:
    """Whether *error* is that of a rank that is lost, or of one that has waited for it."""
    if isinstance(error, LOST):
        return True
    try:
        await within(DEATH_S, "the learner", ranks.completed())
    except (RayActorError, WorkerTimeout):
        return True
    return False
