"""The rollout workers: each a Ray actor, all of them `loop.roles.Rollouts`, however they come and go.

Groups go to the worker with the fewest in flight; what a worker that is lost was asked is asked of another, with the
same seed. Pictures and weights never pass through this process: references to them do.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from ray.exceptions import ObjectLostError

from orchestrator.cluster.calls import LOST, WorkerTimeout, check_not_raised, in_a_line, within
from orchestrator.cluster.crew import ActorHand, Crew
from orchestrator.cluster.pictures import detached, reference, store
from orchestrator.cluster.placement import rollout_bundle
from orchestrator.cluster.ranks import LearnerRanks
from orchestrator.cluster.ready import Starting
from orchestrator.cluster.rollout_actor import RolloutActor
from orchestrator.cluster.scoring import RayScorers
from orchestrator.loop.roles import Exported
from orchestrator.supervision.autoscale import Autoscaler, Observation
from orchestrator.supervision.fleet import State
from orchestrator.supervision.supervisor import Pulse, Supervisor
from records.samples import PolicyVersion, Prompt, Sample, SampleGroup, ScoredGroup

MANY_CALLS = 10_000
"""At once, to an actor whose calls wait for each other inside: the window, not Ray, says how many there are."""
TRIES = 5
"""How many workers a prompt may end before it is taken for the cause."""


class PromptLost(Exception):
    """So many workers were lost with a prompt that it is the cause, perhaps; the text names it."""


class RolloutCrew(Crew):
    """What all rollout workers share: who scores for them, and the version that they shall serve."""

    def __init__(self, scorers: RayScorers, **common: Any) -> None:
        super().__init__(**common)
        self.scorers = scorers
        self.may_start = asyncio.Event()
        self.newest: Exported | None = None
        self.pauses: list[float] = []
        """Of the workers that have loaded it, in seconds."""
        self.came = asyncio.Event()
        """A version has come, perhaps the same again; a new one for each."""

    def publish(self, exported: Exported) -> None:
        self.newest, self.pauses = exported, []
        self.came.set()
        self.came = asyncio.Event()


class RolloutHand(ActorHand):
    """One rollout worker."""

    crew: RolloutCrew

    async def start(self, placed: Callable[[], None]) -> int:
        """Place it, and have it serve the model that the run began with."""
        config = self.crew.config
        place = await self.take_room(rollout_bundle(config), placed)
        await self.crew.may_start.wait()
        actor = place.actor(RolloutActor, self.name, max_concurrency=MANY_CALLS)
        model = str(config.model.resolve())
        self.actor = actor.remote(config.rollout, model, self.name, self.crew.scorers.for_asker(), config.device)
        starting = Starting([self.actor], [self.name], config.start_timeout_s)
        try:
            self.settle((await starting.find())[0])
            await starting.check_machines(node for name, node in self.crew.nodes.items() if name != self.name)
            await starting.call("ready")
            await self.crew.scorers.introduce(self.name, self.actor)
        except Exception as error:
            raise self.crew.judge(error) from error.__cause__
        self.crew.was_ready = True
        return 0

    async def load(self, version: int) -> int:
        """It fetches the buckets from the object store by itself, while it goes on sampling.

        Where the node that held them is gone, the learner makes the version again.
        """
        timeout_s = self.crew.config.rollout.timeout_s
        while True:
            exported, another = self.crew.newest, self.crew.came
            assert exported is not None, f"version {version} is to be loaded, and none has come"
            what = f"loading of version {exported.manifest.version} by {self.name}"
            try:
                receive = self.actor.receive.options(name="loading a version")
                call = receive.remote(exported.manifest, *exported.buckets)
                self.crew.pauses.append(await within(timeout_s, what, call))
                return exported.manifest.version
            except ObjectLostError:
                await another.wait()

    async def look(self) -> Pulse:
        return Pulse(*(await self.actor.pulse.remote()))

    async def drain(self) -> None:
        await self.actor.shutdown.remote()

    async def free(self) -> None:
        self.crew.scorers.forget(self.name)
        await super().free()


class RayRollouts:
    """`loop.roles.Rollouts` on the workers of a supervisor."""

    def __init__(self, supervisor: Supervisor[RolloutHand], crew: RolloutCrew) -> None:
        self.supervisor = supervisor
        self.crew = crew
        self._timeout_s = crew.config.rollout.timeout_s
        self._updating = asyncio.Lock()

    @property
    def workers(self) -> list[Any]:
        """The actors that serve, those that serve longest first."""
        return [hand.actor for hand in self.supervisor.hands.values()]

    async def sample(self, prompt: Prompt, *, seed: int) -> ScoredGroup:
        stored = store(prompt)
        samples, scores = await self._ask("sampling", "sample_stored", stored, seed)
        return ScoredGroup(group=SampleGroup(prompt=stored, samples=samples), scores=scores)

    async def answer(self, prompt: Prompt) -> Sample:
        return await self._ask("answering", "answer_stored", store(prompt))

    async def receive(self, exported: Exported) -> float:
        """Have all workers serve a version; returns the longest pause of one, in seconds."""
        async with self._updating:
            self.crew.publish(exported)  # at once with the next line: no worker knows the one without the other
            await self.supervisor.publish(exported.manifest.version)
            return max(self.crew.pauses)

    async def passed(self, ranks: LearnerRanks, version: PolicyVersion) -> None:
        """A learner that is made again comes by *version*. If the workers shall serve it, and what it is now differs
        from what it was, or was lost with its node, they load it again.
        """
        before = self.crew.newest
        if before is None or before.manifest.version != version:
            return
        exported = await ranks.export(version)
        self.crew.publish(exported)
        if exported.manifest.changed_since(before.manifest):
            await self.supervisor.publish(version)

    def make_autoscaler(self) -> Autoscaler | None:
        """As the run file says."""
        limits = self.crew.config.rollout.autoscale
        return None if limits is None else Autoscaler(limits.min, limits.max)

    def autoscale(self, scaler: Autoscaler, wait_share: float, ready: int, groups_per_step: int, now: float) -> str:
        """Have as many workers as *scaler* says; returns why, if that changes anything."""
        fleet = self.supervisor.fleet
        seen = Observation(
            learner_wait_share=wait_share,
            groups_ready=ready,
            groups_per_step=groups_per_step,
            engine_full=self.supervisor.is_any_full,
            serving=len(fleet.of(State.SERVING)),
            starting=len(fleet.of(State.STARTING)),
        )
        target, why = scaler.look(seen, fleet.target, now)
        if target != fleet.target:
            self.crew.tell("scaled", kind=fleet.kind, target=target, why=why)
            self.supervisor.resize(target)
        return why

    async def stop(self) -> None:
        """End all workers, and what they hold in shared memory."""
        actors = self.workers
        await self.supervisor.end()
        calls = [within(self._timeout_s, "stop of a rollout worker", actor.shutdown.remote()) for actor in actors]
        check_not_raised(await asyncio.gather(*calls, return_exceptions=True))

    async def _ask(self, doing: str, method: str, stored: Prompt, *args: Any) -> Any:
        what = f"{doing} of {stored.id}"
        for _ in range(TRIES):
            async with self.supervisor.serving() as (name, hand):
                try:
                    called = getattr(hand.actor, method).options(name=doing)
                    call = called.remote(detached(stored), reference(stored), *args)
                    return await within(self._timeout_s, what, call)
                except LOST as error:
                    lost = error
            cause = in_a_line(lost)
            self.crew.tell("asked again", worker=name, prompt=stored.id)
            self.supervisor.lost(name, cause, hung=isinstance(lost, WorkerTimeout))
        raise PromptLost(
            f"{what}: {TRIES} workers were lost with it, {name} with {cause}; it may be the cause: look at it (star-r1 "
            "data show), and leave it out of the data"
        ) from lost
