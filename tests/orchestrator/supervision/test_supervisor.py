"""The supervisor, with workers that do what the test says, and a clock of its own."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.supervision import supervisor as module
from orchestrator.supervision.fleet import Fleet, Limits, State
from orchestrator.supervision.supervisor import FleetLost, Pulse, Supervisor, Unfit

LIMITS = Limits(start_s=100, silent_s=50, grace_s=10, leave_s=30, backoff_s=2, most_backoff_s=16, failures=2)


class FakeHand:
    """Each thing that it does waits for the test, where the test says so."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.gates: dict[str, asyncio.Event] = {}
        self.errors: dict[str, Exception] = {}
        self.did: list[str] = []
        self.pulse = Pulse(0, has_work=False)
        self.holds = 0

    async def _do(self, what: str) -> None:
        if what in self.gates:
            await self.gates[what].wait()
        if what in self.errors:
            raise self.errors[what]
        if what != "look":
            self.did.append(what)

    async def start(self, placed: Callable[[], None]) -> int:
        placed()
        await self._do("start")
        return self.holds

    async def load(self, version: int) -> int:
        await self._do(f"load {version}")
        return version

    async def look(self) -> Pulse:
        await self._do("look")
        return self.pulse

    async def drain(self) -> None:
        await self._do("drain")

    async def kill(self, keep_stacks: bool) -> None:
        await self._do("kill hung" if keep_stacks else "kill")

    async def free(self) -> None:
        await self._do("free")

    async def last_words(self) -> str:
        return f"\n{self.name} said: out of memory"


class World:
    """A supervisor of fake hands; *prepare* sees each before it starts."""

    def __init__(self, count: int, limits: Limits = LIMITS) -> None:
        self.hands: dict[str, FakeHand] = {}
        self.events: list[str] = []
        self.now = 0.0
        self.prepare: Callable[[FakeHand], None] = lambda hand: None
        self.supervisor = Supervisor(Fleet("rollout", count, limits), self._make, self._tell, lambda: self.now)

    def _make(self, name: str) -> FakeHand:
        hand = self.hands[name] = FakeHand(name)
        self.prepare(hand)
        return hand

    def _tell(self, event: str, **facts: Any) -> None:
        self.events.append(" ".join([event, *map(str, facts.values())]))

    async def until(self, holds: Callable[[], bool]) -> None:
        for _ in range(500):
            if holds():
                return
            await asyncio.sleep(0.001)
        raise AssertionError(f"{self.supervisor.state()}, {self.events}")

    def state(self, name: str) -> str:
        return self.supervisor.fleet.workers[name].state.value


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.001)


def run(world: World, test: Callable[[], Any]) -> None:
    async def whole() -> None:
        world.supervisor.begin()
        await asyncio.wait_for(test(), 20)
        await world.supervisor.end()

    asyncio.run(whole())


def test_calls_go_to_the_serving_worker_with_the_fewest_in_flight():
    world = World(2)

    async def test() -> None:
        await world.until(lambda: len(world.supervisor.hands) == 2)
        async with world.supervisor.serving() as (first, _), world.supervisor.serving() as (second, _):
            assert {first, second} == {"rollout-0", "rollout-1"}
            world.supervisor.lost(second, "killed")
            async with world.supervisor.serving() as (third, _):
                assert third == first

    run(world, test)


def test_who_asks_waits_until_one_serves():
    world = World(1)
    gate = asyncio.Event()
    world.prepare = lambda hand: hand.gates.update(start=gate)

    async def test() -> None:
        async def ask() -> str:
            async with world.supervisor.serving() as (name, _):
                return name

        asked = asyncio.create_task(ask())
        await world.until(lambda: "rollout-0" in world.hands)
        assert not asked.done()
        gate.set()
        assert await asked == "rollout-0"

    run(world, test)


def test_a_worker_that_is_lost_is_ended_freed_and_replaced_after_a_wait():
    world = World(1)

    async def test() -> None:
        await world.until(lambda: bool(world.supervisor.hands))
        world.supervisor.lost("rollout-0", "killed by somebody")
        world.supervisor.lost("rollout-0", "told twice")
        await world.until(lambda: world.state("rollout-0") == State.GONE)
        assert world.hands["rollout-0"].did[-2:] == ["kill", "free"]
        await asyncio.sleep(0.02)
        assert "rollout-1" not in world.hands
        world.now = 2.0
        await world.until(lambda: "rollout-1" in world.supervisor.hands)
        assert world.events == [
            "starting rollout-0",
            "serving rollout-0 0",
            "ended rollout-0 killed by somebody",
            "gone rollout-0",
            "starting rollout-1",
            "serving rollout-1 0",
        ]

    run(world, test)


def test_one_that_answers_but_completes_nothing_hangs_and_its_stacks_are_kept():
    world = World(1)

    async def test() -> None:
        await world.until(lambda: bool(world.supervisor.hands))
        world.hands["rollout-0"].pulse = Pulse(3, has_work=True)
        await world.until(lambda: world.supervisor._known["rollout-0"].completed == 3)
        world.now = 51.0
        await world.until(lambda: world.state("rollout-0") == State.SUSPECT)
        world.now = 62.0
        await world.until(lambda: world.state("rollout-0") == State.GONE)
        assert "kill hung" in world.hands["rollout-0"].did
        assert "ended rollout-0 it has completed nothing for 62 s" in world.events

    run(world, test)


def test_one_that_does_not_answer_hangs_though_it_has_no_work():
    world = World(1)

    async def test() -> None:
        await world.until(lambda: bool(world.supervisor.hands))
        world.hands["rollout-0"].gates["look"] = asyncio.Event()
        await asyncio.sleep(0.01)
        world.now = 51.0
        await world.until(lambda: world.state("rollout-0") == State.SUSPECT)

    run(world, test)


@pytest.mark.parametrize("is_busy", [True, False])
def test_one_that_makes_progress_or_has_nothing_to_do_does_not_hang(is_busy: bool):
    world = World(1)

    async def test() -> None:
        await world.until(lambda: bool(world.supervisor.hands))
        hand = world.hands["rollout-0"]
        for second in range(20, 400, 20):
            world.now = float(second)
            hand.pulse = Pulse(second if is_busy else 0, has_work=is_busy)
            await world.until(lambda: world.supervisor.fleet.workers["rollout-0"].progressed == world.now)
            assert world.state("rollout-0") == State.SERVING

    run(world, test)


def test_a_version_is_published_when_all_that_serve_hold_it_and_not_without_any():
    world = World(2)
    gate = asyncio.Event()

    async def test() -> None:
        await world.until(lambda: len(world.supervisor.hands) == 2)
        world.hands["rollout-0"].gates["load 1"] = world.hands["rollout-1"].gates["load 1"] = gate
        publishing = asyncio.create_task(world.supervisor.publish(1))
        await asyncio.sleep(0.01)
        for name in ("rollout-0", "rollout-1"):  # in the middle of it
            world.supervisor.lost(name, "killed")
        await asyncio.sleep(0.01)
        assert not publishing.done()
        world.now = 5.0
        await publishing
        assert world.hands["rollout-2"].did[:2] == ["start", "load 1"]

    run(world, test)


def test_one_that_cannot_load_is_replaced():
    world = World(2)

    async def test() -> None:
        await world.until(lambda: len(world.supervisor.hands) == 2)
        world.hands["rollout-1"].errors["load 1"] = ValueError("has other tensors")
        await world.supervisor.publish(1)
        assert list(world.supervisor.hands) == ["rollout-0"]
        await world.until(lambda: "ended rollout-1 ValueError('has other tensors')" in world.events)

    run(world, test)


def test_one_that_is_let_go_ends_what_it_has_and_is_not_replaced():
    world = World(2)

    async def test() -> None:
        await world.until(lambda: len(world.supervisor.hands) == 2)
        async with world.supervisor.serving(), world.supervisor.serving():
            world.supervisor.resize(1)
            (left,) = world.supervisor.hands
            gone = ({"rollout-0", "rollout-1"} - {left}).pop()
            await asyncio.sleep(0.01)
            assert world.state(gone) == State.LEAVING
            assert "drain" not in world.hands[gone].did
        await world.until(lambda: world.hands[gone].did[-2:] == ["drain", "free"])
        assert world.state(gone) == State.GONE
        world.now = 100.0
        await asyncio.sleep(0.01)
        assert len(world.hands) == 2
        world.supervisor.resize(2)
        await world.until(lambda: len(world.supervisor.hands) == 2)

    run(world, test)


def test_one_that_dies_while_it_leaves_is_not_missed():
    world = World(2)
    world.prepare = lambda hand: hand.errors.update(drain=RuntimeError("killed"))

    async def test() -> None:
        await world.until(lambda: len(world.supervisor.hands) == 2)
        world.supervisor.resize(1)
        await world.until(lambda: len(world.supervisor.state()) == 1)
        world.now = 100.0
        await asyncio.sleep(0.01)
        assert len(world.hands) == 2
        assert world.supervisor.failure is None

    run(world, test)


def test_one_that_starts_for_ever_is_killed_and_one_that_is_not_needed_any_more():
    world = World(2)
    world.prepare = lambda hand: hand.gates.update(start=asyncio.Event())

    async def test() -> None:
        await world.until(lambda: len(world.hands) == 2)
        world.supervisor.resize(1)
        await world.until(lambda: sorted(world.supervisor.state().values()) == ["starting"])
        ((left, _),) = world.supervisor.state().items()
        world.now = 101.0
        await world.until(lambda: "kill hung" in world.hands[left].did)

    run(world, test)


def test_failures_in_a_row_end_the_fleet_with_the_last_words_of_the_last():
    world = World(1)
    world.prepare = lambda hand: hand.errors.update(start=RuntimeError("no room for the model"))

    async def test() -> None:
        for name in ("rollout-0", "rollout-1", "rollout-2"):
            await world.until(lambda it=name: any(event.startswith(f"ended {it}") for event in world.events))
            world.now += 20.0
        with pytest.raises(FleetLost) as ended:
            async with world.supervisor.serving():
                pass
        assert str(ended.value) == (
            "rollout: 3 failures in a row, the last of rollout-2: RuntimeError('no room for the model')"
            "\nrollout-2 said: out of memory"
        )
        with pytest.raises(FleetLost):
            await world.supervisor.publish(1)

    run(world, test)


def test_what_would_happen_to_every_other_ends_the_fleet_at_once():
    world = World(1)
    unfit = Unfit()
    unfit.__cause__ = ValueError("the model is not there")
    world.prepare = lambda hand: hand.errors.update(start=unfit)

    async def test() -> None:
        with pytest.raises(ValueError, match="the model is not there"):
            async with world.supervisor.serving():
                pass
        assert len(world.hands) == 1

    run(world, test)
