"""Who serves, who is suspected, who is replaced: the supervisor's rules, without Ray, files or a clock of its own.

It is told what happened and when (seconds of any clock that does not jump), and says what to do. Always: a worker comes
to serve only when it holds the newest published version whole; what leaves or is dead never serves again, and a
replacement is another worker; a worker hangs when it completes nothing, however lively it seems.

    starting ──loaded──▶ serving ◀──progressed── suspect        any of these ──died──▶ dead ──freed──▶ gone
                            │ ────no progress───▶   │
                            └──leave──▶ leaving ◀───┘           leaving ──drained──▶ gone
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """Of a worker. Only one that is *serving* gets new work."""

    STARTING = "starting"
    SERVING = "serving"
    SUSPECT = "suspect"
    LEAVING = "leaving"
    DEAD = "dead"
    GONE = "gone"


LIVE = (State.STARTING, State.SERVING, State.SUSPECT)
"""Those that count as there."""


class NoSuchTransition(Exception):
    """*worker* is in *state*, in which *event* cannot happen: whoever told of it is mistaken."""

    def __init__(self, worker: str, state: State, event: str) -> None:
        super().__init__(worker, state, event)
        self.worker, self.state, self.event = worker, state, event

    def __str__(self) -> str:
        return f"{self.worker} is {self.state}, and cannot have {self.event}"


MAY_HAPPEN: Mapping[str, tuple[State, ...]] = {
    "got its room": (State.STARTING,),
    "loaded": (State.STARTING, State.SERVING, State.SUSPECT, State.LEAVING),
    "progressed": (State.SERVING, State.SUSPECT, State.LEAVING),
    "been told to leave": LIVE,
    "drained": (State.LEAVING,),
    "died": (*LIVE, State.LEAVING),
    "freed what it had": (State.DEAD,),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Of one kind of worker, in seconds.

    From when it has got its room it may take *start_s* until it serves, complete nothing for *silent_s* before it is
    suspected, then for *grace_s* before it is killed, and leave for *leave_s*. After a failure the next start waits
    *backoff_s*, twice as long after each in a row up to *most_backoff_s*; more than *failures* in a row end the run.
    """

    start_s: float = 600.0
    silent_s: float = 300.0
    grace_s: float = 30.0
    leave_s: float = 120.0
    backoff_s: float = 1.0
    most_backoff_s: float = 60.0
    failures: int = 5


@dataclass(frozen=True, slots=True)
class Start:
    """Make the worker."""

    worker: str


@dataclass(frozen=True, slots=True)
class Load:
    """Have the worker load *version*."""

    worker: str
    version: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Give the worker no more, and have it end what it has."""

    worker: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End the worker's process; keep its stacks first if it *hung*."""

    worker: str
    why: str
    hung: bool = False


@dataclass(frozen=True, slots=True)
class Free:
    """Give back what the worker had: its place, its shared memory."""

    worker: str


@dataclass(frozen=True, slots=True)
class EndRun:
    """Nothing helps any more."""

    worker: str
    why: str


Action = Start | Load | Drain | Kill | Free | EndRun


@dataclass(slots=True)
class Worker:
    """As the supervisor knows it; *holds* is the version that it has loaded whole, None if it is to load one first."""

    name: str
    state: State
    since: float
    progressed: float
    holds: int | None = None
    has_room: bool = False


@dataclass(slots=True)
class Fleet:
    """The workers of one *kind*, of which *target* shall serve; *lost* were missed so far.

    Each method returns what is to be done.
    """

    kind: str
    target: int
    limits: Limits
    newest: int = 0
    lost: int = 0
    workers: dict[str, Worker] = field(default_factory=dict)
    _made: int = 0
    _failures: int = 0
    _not_before: float = 0.0
    _ended: bool = False

    def of(self, *states: State) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.state in states]

    @property
    def behind(self) -> list[Worker]:
        """Those that serve an older version than the newest: it is published when there are none."""
        return [worker for worker in self.of(State.SERVING) if worker.holds != self.newest]

    def tick(self, now: float) -> list[Action]:
        """Time has passed: deadlines, replacements, and those that are too many."""
        actions: list[Action] = []
        for worker in list(self.workers.values()):
            actions += self._check_deadline(worker, now)
        live = self.of(*LIVE)
        for worker in sorted(live, key=_readiness)[: max(0, len(live) - self.target)]:
            actions += self.leave(worker.name, now)
        if not self._ended and now >= self._not_before:
            actions += [self._start(now) for _ in range(self.target - len(live))]
        return actions

    def publish(self, version: int, now: float) -> list[Action]:
        """*version* is there. Those that serve go on serving what they hold until they have loaded it.

        It may be the newest once more: the learner has made it again, and all shall have what it has now.
        """
        if version < self.newest:
            raise ValueError(f"version {version} is older than {self.newest}, which the {self.kind} fleet has")
        self.newest = version
        for worker in self.workers.values():
            worker.holds = None if worker.holds == version else worker.holds
        return [Load(worker.name, version) for worker in self.of(State.SERVING, State.SUSPECT)]

    def placed(self, name: str, now: float) -> list[Action]:
        """It has got its room: from now on its start takes time."""
        worker = self._get(name, "got its room")
        worker.has_room, worker.since = True, now
        return []

    def loaded(self, name: str, version: int, now: float) -> list[Action]:
        """It holds *version* whole, and is told the newest if that is another."""
        worker = self._get(name, "loaded")
        worker.holds, worker.progressed = version, now
        if worker.state is State.LEAVING:
            return []
        if version != self.newest:
            return [Load(name, self.newest)]
        self._become(worker, State.SERVING, now)
        return []

    def progressed(self, name: str, now: float) -> list[Action]:
        """It has completed something: what was suspected is not any more, and failures are no longer in a row."""
        actions = self.idle(name, now)
        self._failures = 0
        return actions

    def idle(self, name: str, now: float) -> list[Action]:
        """It says that it has nothing to do, which hides no hang."""
        worker = self._get(name, "progressed")
        worker.progressed = now
        if worker.state is not State.SUSPECT:
            return []
        if worker.holds != self.newest:  # a version has passed it by
            return [Load(name, self.newest)]
        self._become(worker, State.SERVING, now)
        return []

    def leave(self, name: str, now: float) -> list[Action]:
        worker = self._get(name, "been told to leave")
        never_served = worker.state is State.STARTING
        self._become(worker, State.LEAVING, now)
        return [Kill(name, "it is not needed any more")] if never_served else [Drain(name)]

    def drained(self, name: str, now: float) -> list[Action]:
        self._become(self._get(name, "drained"), State.GONE, now)
        return [Free(name)]

    def died(self, name: str, cause: str, now: float) -> list[Action]:
        """Its process is gone. One that was leaving is not missed; any other counts as a failure of its kind."""
        worker = self._get(name, "died")
        missed = worker.state is not State.LEAVING
        self._become(worker, State.DEAD, now)
        actions: list[Action] = [Free(name)]
        if missed:
            self.lost += 1
            self._failures += 1
            wait_s = min(self.limits.most_backoff_s, self.limits.backoff_s * 2.0 ** (self._failures - 1))
            self._not_before = now + wait_s
            if self._failures > self.limits.failures and not self._ended:
                self._ended = True
                actions.append(EndRun(name, f"{self._failures} failures in a row, the last of {name}: {cause}"))
        return actions

    def freed(self, name: str, now: float) -> list[Action]:
        self._become(self._get(name, "freed what it had"), State.GONE, now)
        return []

    def _start(self, now: float) -> Action:
        name = f"{self.kind}-{self._made}"
        self._made += 1
        self.workers[name] = Worker(name=name, state=State.STARTING, since=now, progressed=now)
        return Start(name)

    def _check_deadline(self, worker: Worker, now: float) -> Iterable[Action]:
        limits = self.limits
        if worker.state is State.STARTING and worker.has_room and now - worker.since > limits.start_s:
            yield from self._kill(worker, f"it did not serve within {limits.start_s:g} s", now)
        elif worker.state is State.SERVING and now - worker.progressed > limits.silent_s:
            self._become(worker, State.SUSPECT, now)
        elif worker.state is State.SUSPECT and now - worker.since > limits.grace_s:
            silent_s = now - worker.progressed
            yield from self._kill(worker, f"it has completed nothing for {silent_s:.0f} s", now)
        elif worker.state is State.LEAVING and now - worker.since > limits.leave_s:
            yield from self._kill(worker, f"it did not leave within {limits.leave_s:g} s", now)

    def _kill(self, worker: Worker, why: str, now: float) -> list[Action]:
        return [Kill(worker.name, why, hung=True), *self.died(worker.name, why, now)]

    def _get(self, name: str, event: str) -> Worker:
        worker = self.workers[name]
        if worker.state not in MAY_HAPPEN[event]:
            raise NoSuchTransition(name, worker.state, event)
        return worker

    def _become(self, worker: Worker, state: State, now: float) -> None:
        if worker.state is not state:
            worker.state, worker.since = state, now


def _readiness(worker: Worker) -> tuple[int, float]:
    """Those that are missed least come first: the suspected, those that start, the youngest that serve."""
    order = (State.SUSPECT, State.STARTING, State.SERVING)
    return order.index(worker.state), -worker.since
