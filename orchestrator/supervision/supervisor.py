"""The supervisor: does what the rules of a fleet say, and tells them what has happened.

It alone makes, replaces and lets go the workers of its kind. Whoever has work for one asks for the worker that is best
to be asked, and tells of it if that one was lost; nobody else knows that workers come and go.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from orchestrator.supervision.fleet import (
    LIVE,
    MAY_HAPPEN,
    Action,
    Drain,
    EndRun,
    Fleet,
    Free,
    Kill,
    Load,
    Start,
    State,
)

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks at the workers and at the clock."""


class Pulse(NamedTuple):
    """What a worker says of itself: how much it has *completed* since it started, whether it *has_work*, and whether it
    *is_full*, so that more work waits.
    """

    completed: int
    has_work: bool
    is_full: bool = False


class Hand(Protocol):
    """One worker, as the supervisor handles it. What a method raises ends the worker."""

    async def start(self, placed: Callable[[], None]) -> int:
        """Make it, and return which version it holds when it is ready; *placed* is called when it has got its room.

        Raises `Unfit` for what would happen to every other as well.
        """
        ...

    async def load(self, version: int) -> int:
        """Have it load *version*, or a newer one; returns which."""
        ...

    async def look(self) -> Pulse: ...

    async def drain(self) -> None:
        """Return when it has ended what it has; it is given nothing more."""
        ...

    async def kill(self, keep_stacks: bool) -> None:
        """End its processes. Where they hung, their stacks are kept first."""
        ...

    async def free(self) -> None:
        """Give back what it had."""
        ...

    async def last_words(self) -> str:
        """The last lines that it wrote, wherever it ran; empty if there are none."""
        ...


class Unfit(Exception):
    """No worker of this kind can start, and none would after it; its cause says why."""


class FleetLost(Exception):
    """No worker of a *kind* can be kept; the text says why, and what the last one wrote."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(kind, why)
        self.kind, self.why = kind, why

    def __str__(self) -> str:
        return f"{self.kind}: {self.why}"


H = TypeVar("H", bound=Hand)


@dataclass(slots=True)
class _Known(Generic[H]):
    """A worker, as it is looked after."""

    name: str
    hand: H
    doing: set[asyncio.Task[None]]
    turn: asyncio.Lock
    in_flight: int = 0
    completed: int = -1
    is_full: bool = False
    looking: asyncio.Task[None] | None = None
    last_words: str = ""


class Supervisor(Generic[H]):
    """That of *fleet*, whose workers *make* gives by name.

    *tell* is told what happens, an event's name and facts; *cause* says an error in a line.
    """

    def __init__(
        self,
        fleet: Fleet,
        make: Callable[[str], H],
        tell: Callable[..., None],
        clock: Callable[[], float] = time.monotonic,
        cause: Callable[[Exception], str] = repr,
    ) -> None:
        self.fleet = fleet
        self._make = make
        self._tell = tell
        self._clock = clock
        self._cause = cause
        self._known: dict[str, _Known[H]] = {}
        self._serving: dict[str, _Known[H]] = {}
        self._changed = asyncio.Event()
        self._failure: Exception | None = None
        self._watching: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """From now on there are workers, and they are watched."""
        self._watching = asyncio.create_task(self._watch(), name=f"supervision of {self.fleet.kind}")

    async def end(self) -> None:
        """From now on nobody is watched or replaced; those that are there stay."""
        tasks = [task for known in self._known.values() for task in (*known.doing, known.looking) if task is not None]
        for task in [*tasks, *([self._watching] if self._watching else [])]:
            task.cancel()
        await asyncio.gather(*tasks, *([self._watching] if self._watching else []), return_exceptions=True)

    @property
    def failure(self) -> Exception | None:
        """Why nobody of this kind can be had any more."""
        return self._failure

    @property
    def hands(self) -> dict[str, H]:
        """Of the workers that serve, by name, those that serve longest first."""
        return {name: known.hand for name, known in self._serving.items()}

    @property
    def is_any_full(self) -> bool:
        """Whether work waits at a worker that serves, for it has as much as it can do at once."""
        return any(known.is_full for known in self._serving.values())

    def state(self) -> dict[str, str]:
        """Of every worker that is not gone, by name."""
        return {name: worker.state.value for name, worker in self.fleet.workers.items() if worker.state != State.GONE}

    def all_placed(self) -> bool:
        """Whether as many as shall serve have got their room."""
        return sum(worker.has_room for worker in self.fleet.of(*LIVE)) >= self.fleet.target

    def all_ready(self) -> bool:
        """Whether all that have got their room serve, and there is one."""
        starting = [worker for worker in self.fleet.of(State.STARTING) if worker.has_room]
        return bool(self.fleet.of(State.SERVING)) and not starting

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until *holds*. Raises what ended the fleet."""

        while self._failure is None and not holds():
            await self._changed.wait()
        if self._failure is not None:
            raise self._failure

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[tuple[str, H]]:
        """The worker that serves with the fewest calls in flight, and its name; it has one more meanwhile.

        Waits for one. Raises what ended the fleet.
        """
        await self.until(lambda: bool(self._serving))
        known = min(self._serving.values(), key=_in_flight)
        known.in_flight += 1
        try:
            yield known.name, known.hand
        finally:
            known.in_flight -= 1
            self._stir()

    def lost(self, name: str, cause: str, hung: bool = False) -> None:
        """Who asked it found it dead, of no more use, or *hung*."""
        if self.fleet.workers[name].state in MAY_HAPPEN["died"]:
            self._do([Kill(name, cause, hung), *self.fleet.died(name, cause, self._clock())])

    def resize(self, target: int) -> None:
        """From now on so many workers shall serve."""
        self.fleet.target = target
        self._do(self.fleet.tick(self._clock()))

    async def publish(self, version: int) -> None:
        """Return when every worker that serves holds *version*, and there is one. Raises what ended the fleet."""
        self._do(self.fleet.publish(version, self._clock()))
        await self.until(lambda: bool(self.fleet.of(State.SERVING)) and not self.fleet.behind)

    async def _watch(self) -> None:
        while True:
            self._do(self.fleet.tick(self._clock()))
            for worker in self.fleet.of(State.SERVING, State.SUSPECT, State.LEAVING):
                known = self._known[worker.name]
                if known.looking is None or known.looking.done():
                    known.looking = asyncio.create_task(self._look(worker.name, known))
            await asyncio.sleep(LOOK_S)

    async def _look(self, name: str, known: _Known[H]) -> None:
        """A worker that hangs never answers, and so never makes progress."""
        try:
            pulse = await known.hand.look()
        except Exception as error:  # whatever it is, the worker cannot even say how it is
            self.lost(name, self._cause(error))
            return
        known.is_full = pulse.is_full
        if self.fleet.workers[name].state not in MAY_HAPPEN["progressed"]:
            return
        if pulse.completed != known.completed:
            known.completed = pulse.completed
            self._do(self.fleet.progressed(name, self._clock()))
        elif not pulse.has_work:
            self._do(self.fleet.idle(name, self._clock()))

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Start(name):
                    self._known[name] = _Known(name, self._make(name), set(), asyncio.Lock())
                    self._tell("starting", worker=name)
                    self._begin(name, self._start)
                case Load(name, version):
                    self._begin(name, self._load, version)
                case Drain(name):
                    self._tell("leaving", worker=name)
                    self._begin(name, self._drain)
                case Kill(name, why, hung):
                    self._kill(name, why, hung)
                case Free(name):
                    self._begin(name, self._free)
                case EndRun(name, why):
                    self._begin(name, self._give_up, why)
        self._serving = {worker.name: self._known[worker.name] for worker in self.fleet.of(State.SERVING)}
        self._stir()

    def _begin(self, name: str, work: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """One thing after another for each worker."""
        known = self._known[name]

        async def in_turn(turn: asyncio.Lock) -> None:
            async with turn:
                await work(name, *args)

        task = asyncio.create_task(in_turn(known.turn), name=f"{work.__name__} of {name}")
        known.doing.add(task)
        task.add_done_callback(known.doing.discard)
        task.add_done_callback(self._check)

    def _check(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error if isinstance(error, Exception) else RuntimeError(repr(error)))

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._stir()

    def _stir(self) -> None:
        """Have those who wait for something look whether it is there."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _start(self, name: str) -> None:
        hand = self._known[name].hand

        def placed() -> None:
            if self.fleet.workers[name].state is State.STARTING:
                self.fleet.placed(name, self._clock())
                self._stir()

        try:
            version = await hand.start(placed)
        except Unfit as error:
            self._fail(error.__cause__ if isinstance(error.__cause__, Exception) else error)
            return
        except Exception as error:
            self.lost(name, self._cause(error))
            return
        self._loaded(name, version)

    async def _load(self, name: str, version: int) -> None:
        if self.fleet.workers[name].state not in MAY_HAPPEN["loaded"]:
            return
        try:
            version = await self._known[name].hand.load(version)
        except Exception as error:
            self.lost(name, self._cause(error))
            return
        self._loaded(name, version)

    def _loaded(self, name: str, version: int) -> None:
        worker = self.fleet.workers[name]
        if worker.state not in MAY_HAPPEN["loaded"]:  # it was given up meanwhile
            return
        starting = worker.state is State.STARTING
        self._do(self.fleet.loaded(name, version, self._clock()))
        if starting and self.fleet.workers[name].state is State.SERVING:
            self._tell("serving", worker=name, version=version)

    async def _drain(self, name: str) -> None:
        known = self._known[name]
        await self.until(lambda: known.in_flight == 0)
        try:
            await known.hand.drain()
        except Exception as error:
            self.lost(name, self._cause(error))
            return
        if self.fleet.workers[name].state is State.LEAVING:
            self._do(self.fleet.drained(name, self._clock()))

    def _kill(self, name: str, why: str, hung: bool) -> None:
        known = self._known[name]
        for task in known.doing - {asyncio.current_task()}:  # it may hang in any of them
            task.cancel()
        known.turn = asyncio.Lock()
        self._begin(name, self._end, why, hung)

    async def _end(self, name: str, why: str, hung: bool) -> None:
        hand = self._known[name].hand
        self._known[name].last_words = await hand.last_words()
        self._tell("ended", worker=name, why=why)
        await hand.kill(hung)
        if self.fleet.workers[name].state in MAY_HAPPEN["died"]:  # it was told to go before it served
            self._do(self.fleet.died(name, why, self._clock()))

    async def _free(self, name: str) -> None:
        await self._known[name].hand.free()
        if self.fleet.workers[name].state is State.DEAD:
            self.fleet.freed(name, self._clock())
        self._tell("gone", worker=name)

    async def _give_up(self, name: str, why: str) -> None:
        self._fail(FleetLost(self.fleet.kind, f"{why}{self._known[name].last_words}"))


_in_flight = attrgetter("in_flight")
