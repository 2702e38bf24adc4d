"""What the hands of all workers have in common: a place on the cluster, an actor there, and how it is ended."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from orchestrator.cluster.calls import WorkerTimeout, in_a_line
from orchestrator.cluster.on_node import Whereabouts, end_there, last_words
from orchestrator.cluster.placement import Bundle, Place, give_back, place_worker, reward_home
from orchestrator.config import ConfigError, RunConfig, StartFailed
from orchestrator.supervision.fleet import Fleet, Limits
from orchestrator.supervision.supervisor import Hand, Supervisor, Unfit

logger = logging.getLogger(__name__)

STACKS = "stacks"
"""In the run directory: where those of workers that hung are kept."""


C = TypeVar("C", bound="Crew")
H = TypeVar("H", bound=Hand)


class Tell(Protocol):
    """Is told what happens to the run's workers, for its journal and for who watches it."""

    def __call__(self, event: str, **facts: Any) -> None: ...


class Crew:
    """The workers of one kind: which of them have room, and whether any of them has ever been ready.

    While the learner has no place, which *learner_placed* says, none of the others takes one: without it they would all
    wait for ever.
    """

    def __init__(self, config: RunConfig, folder: Path, tell: Tell, learner_placed: asyncio.Event) -> None:
        self.config = config
        self.learner_placed = learner_placed
        self.folder = folder
        self.tell = tell
        self.nodes: dict[str, str] = {}
        self.homes: dict[str, str] = {}
        self.has_room: set[str] = set()
        self.waits_for_room: dict[str, str] = {}
        self.was_ready = False

    def knows_room(self, count: int) -> bool:
        """Whether *count* workers have room, or are known to wait for it."""
        return len(self.has_room | self.waits_for_room.keys()) >= count

    async def place(self, name: str, bundle: Bundle, apart: bool) -> Place:
        """On a node of its own, if it is to be *apart* from its kind and there are enough.

        Raises Unfit where there is no room, and none to wait for: the run has not begun, and nobody has any.
        """

        def may_wait(lacks: str) -> bool:
            if not (self.has_room or self.was_ready):
                return False
            if name not in self.waits_for_room:
                self.tell("waiting", worker=name, why=lacks)
            self.waits_for_room[name] = lacks
            return True

        place = None
        try:
            while place is None:
                await self.learner_placed.wait()
                if apart:
                    self.homes[name] = reward_home(self.config, self.homes.values())
                goes_on, home = self.learner_placed.is_set, self.homes.get(name)
                place = await place_worker(self.config, name, bundle, may_wait, goes_on, home)
        except ConfigError as error:
            raise Unfit from error
        finally:
            self.waits_for_room.pop(name, None)
        self.has_room.add(name)
        return place

    def tell_where(self, name: str, where: Whereabouts) -> None:
        self.tell("runs", worker=name, address=where.address, node=where.node_id, pid=where.pid)

    def judge(self, error: Exception) -> Exception:
        """What *error* of a start means: while nobody has been ready, what a worker raises itself is everybody's."""
        own = isinstance(error, ConfigError) or (
            isinstance(error, StartFailed) and isinstance(error.__cause__, RayTaskError)
        )
        if own and not self.was_ready:
            unfit = Unfit(str(error))
            unfit.__cause__ = error
            return unfit
        return error


def supervise(kind: str, count: int, crew: C, hand: Callable[[str, C], H]) -> Supervisor[H]:
    """The supervisor of the *count* workers of one *kind*, each with a *hand* of its own."""
    limits = Limits(start_s=crew.config.start_timeout_s, **crew.config.supervision.model_dump())
    return Supervisor(Fleet(kind, count, limits), lambda name: hand(name, crew), crew.tell, cause=in_a_line)


class ActorHand:
    """`supervision.supervisor.Hand` on one actor."""

    def __init__(self, name: str, crew: Crew) -> None:
        self.name = name
        self.crew = crew
        self.actor: Any = None
        self.place: Place | None = None
        self.where: Whereabouts | None = None

    async def take_room(self, bundle: Bundle, placed: Callable[[], None], apart: bool = False) -> Place:
        self.place = await self.crew.place(self.name, bundle, apart)
        placed()
        return self.place

    def settle(self, where: Whereabouts) -> None:
        self.where = where
        self.crew.nodes[self.name] = where.node_id
        self.crew.tell_where(self.name, where)

    async def kill(self, keep_stacks: bool) -> None:
        if keep_stacks and self.where is not None:
            await end_hung(self.name, [self.where], self.crew.folder)
        elif self.actor is not None:
            ray.kill(self.actor)

    async def free(self) -> None:
        self.crew.nodes.pop(self.name, None)
        self.crew.homes.pop(self.name, None)
        self.crew.has_room.discard(self.name)
        if self.place is not None:
            give_back([self.place])

    async def last_words(self) -> str:
        return "" if self.where is None else await last_words(self.where)


async def end_hung(name: str, places: list[Whereabouts], folder: Path) -> None:
    """End the processes at *places*, and keep their stacks in the run's *folder* as those of *name*."""
    said = []
    for place in places:
        try:
            said.append(await end_there(place))
        except (RayError, WorkerTimeout) as error:
            said.append(f"process {place.pid} on {place.address} could not be asked: {error}\n")
    path = folder / STACKS / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(said))
    logger.warning("the stacks of %s are in %s", name, path)
