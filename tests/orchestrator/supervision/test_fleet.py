"""The supervisor's rules: by hand, and through thousands of random histories with a clock of the test's own."""

import random
from dataclasses import dataclass, field

import pytest

from orchestrator.supervision.fleet import (
    LIVE,
    Action,
    Drain,
    EndRun,
    Fleet,
    Free,
    Kill,
    Limits,
    Load,
    NoSuchTransition,
    Start,
    State,
)

LIMITS = Limits(start_s=100, silent_s=50, grace_s=10, leave_s=30, backoff_s=2, most_backoff_s=16, failures=3)


def serving(count: int = 1, limits: Limits = LIMITS) -> Fleet:
    """At second 0, version 0."""
    fleet = Fleet("rollout", count, limits)
    for action in fleet.tick(0.0):
        assert isinstance(action, Start)
        assert fleet.loaded(action.worker, 0, 0.0) == []
    return fleet


def states(fleet: Fleet) -> list[str]:
    return [worker.state for worker in fleet.workers.values()]


def test_as_many_are_started_as_shall_serve_and_they_serve_once_they_hold_the_version():
    fleet = Fleet("rollout", 2, LIMITS)
    assert fleet.tick(0.0) == [Start("rollout-0"), Start("rollout-1")]
    assert fleet.tick(1.0) == []
    fleet.loaded("rollout-1", 0, 5.0)
    assert states(fleet) == ["starting", "serving"]


def test_one_that_came_while_versions_were_published_serves_only_with_the_newest():
    fleet = Fleet("rollout", 1, LIMITS)
    fleet.tick(0.0)
    assert fleet.publish(1, 1.0) == []  # to one that starts there is nothing to send yet
    assert fleet.loaded("rollout-0", 0, 2.0) == [Load("rollout-0", 1)]
    fleet.publish(2, 3.0)
    assert fleet.loaded("rollout-0", 1, 4.0) == [Load("rollout-0", 2)]
    assert states(fleet) == ["starting"]
    assert fleet.loaded("rollout-0", 2, 5.0) == []
    assert states(fleet) == ["serving"]


def test_a_version_is_published_when_no_live_worker_is_behind():
    fleet = serving(2)
    assert fleet.publish(1, 1.0) == [Load("rollout-0", 1), Load("rollout-1", 1)]
    fleet.loaded("rollout-0", 1, 2.0)
    assert [worker.name for worker in fleet.behind] == ["rollout-1"]
    fleet.died("rollout-1", "killed", 3.0)
    assert fleet.behind == []
    with pytest.raises(ValueError, match="version 0 is older than 1, which the rollout fleet has"):
        fleet.publish(0, 4.0)


def test_a_version_that_was_made_again_is_loaded_again_before_anybody_new_serves():
    fleet = serving(2)
    fleet.publish(1, 1.0)
    fleet.loaded("rollout-0", 1, 2.0)
    assert fleet.publish(1, 3.0) == [Load("rollout-0", 1), Load("rollout-1", 1)]
    assert [worker.name for worker in fleet.behind] == ["rollout-0", "rollout-1"]
    fleet.loaded("rollout-0", 1, 4.0)
    fleet.loaded("rollout-1", 1, 4.0)
    assert fleet.behind == []


def test_a_start_takes_time_only_from_when_there_is_room():
    fleet = Fleet("rollout", 1, LIMITS)
    fleet.tick(0.0)
    assert fleet.tick(1000.0) == []
    fleet.placed("rollout-0", 1000.0)
    assert fleet.tick(1100.0) == []
    assert fleet.tick(1101.0)[0] == Kill("rollout-0", "it did not serve within 100 s", hung=True)


def test_one_that_has_nothing_to_do_does_not_hang_and_ends_no_row_of_failures():
    fleet = serving(2)
    for second in range(10, 200, 10):
        for name in ("rollout-0", "rollout-1"):
            fleet.idle(name, second)
        assert fleet.tick(second) == []
    for number in range(1, 4):
        fleet.died(f"rollout-{number}", "killed", 200.0 + number)
        fleet.tick(300.0 + number)
        fleet.idle("rollout-0", 300.0 + number)
    assert fleet.died("rollout-4", "killed", 400.0)[-1] == EndRun(
        "rollout-4", "4 failures in a row, the last of rollout-4: killed"
    )


def test_one_that_completes_nothing_is_suspected_then_killed_and_replaced_by_another():
    fleet = serving()
    assert fleet.tick(50.0) == []
    fleet.tick(51.0)
    assert states(fleet) == ["suspect"]
    assert fleet.tick(61.0) == []
    killed, freed = fleet.tick(62.0)
    assert killed == Kill("rollout-0", "it has completed nothing for 62 s", hung=True)
    assert freed == Free("rollout-0")
    assert fleet.tick(63.0) == []  # it waits 2 s
    assert fleet.tick(64.0) == [Start("rollout-1")]
    assert states(fleet) == ["dead", "starting"]


def test_a_long_step_is_no_hang_if_it_ends_in_time():
    fleet = serving()
    fleet.tick(55.0)
    fleet.progressed("rollout-0", 56.0)
    assert states(fleet) == ["serving"]
    fleet.tick(106.0)
    assert states(fleet) == ["serving"]


def test_a_suspect_that_a_version_has_passed_by_loads_it_before_it_serves_again():
    fleet = serving()
    fleet.tick(51.0)
    assert fleet.publish(1, 52.0) == [Load("rollout-0", 1)]
    assert fleet.progressed("rollout-0", 53.0) == [Load("rollout-0", 1)]
    assert states(fleet) == ["suspect"]
    fleet.loaded("rollout-0", 1, 54.0)
    assert states(fleet) == ["serving"]


def test_starts_wait_twice_as_long_after_each_failure_in_a_row_and_at_last_the_run_ends():
    fleet, now, waits = Fleet("reward", 1, LIMITS), 0.0, []
    fleet.tick(now)
    for number in range(3):
        fleet.died(f"reward-{number}", "killed", now)
        waited = next(wait for wait in range(1, 100) if fleet.tick(now + wait))
        waits.append(waited)
        now += waited
    assert waits == [2, 4, 8]
    ended = fleet.died("reward-3", "out of memory", now)
    assert ended[-1] == EndRun("reward-3", "4 failures in a row, the last of reward-3: out of memory")
    assert fleet.tick(now + 1000) == []


def test_what_completes_something_ends_the_row_of_failures():
    fleet = serving(2)
    for number in range(1, 10):
        fleet.died(f"rollout-{number}", "killed", number * 10.0)
        fleet.tick(number * 10.0 + 5)
        fleet.progressed("rollout-0", number * 10.0 + 6)
    assert len(fleet.of(*LIVE)) == 2


def test_fewer_targets_let_those_go_that_are_missed_least():
    fleet = serving(4)
    fleet.died("rollout-1", "killed", 1.0)
    fleet.tick(4.0)  # rollout-4 starts
    for name in ("rollout-0", "rollout-3"):
        fleet.progressed(name, 55.0)
    fleet.tick(56.0)  # rollout-2 is suspected
    fleet.target = 2
    assert fleet.tick(57.0) == [Drain("rollout-2"), Kill("rollout-4", "it is not needed any more")]
    assert [worker.name for worker in fleet.of(State.SERVING)] == ["rollout-0", "rollout-3"]
    fleet.drained("rollout-2", 58.0)
    assert fleet.died("rollout-4", "killed", 58.0) == [Free("rollout-4")]
    assert fleet.tick(58.0) == []
    fleet.target = 3
    assert fleet.tick(58.0) == [Start("rollout-5")]  # it died as it was told: no failure, and no wait


def test_one_that_does_not_leave_in_time_is_killed_and_not_replaced():
    fleet = serving(2)
    fleet.target = 1
    (drain,) = fleet.tick(1.0)
    killed, freed = fleet.tick(32.0)
    assert killed == Kill(drain.worker, "it did not leave within 30 s", hung=True)
    assert freed == Free(drain.worker)
    assert fleet.tick(40.0) == []


@pytest.mark.parametrize("event", ["placed", "loaded", "progressed", "idle", "leave", "drained", "died", "freed"])
@pytest.mark.parametrize("state", list(State))
def test_a_transition_that_does_not_exist_is_named(event: str, state: State):
    fleet = serving()
    fleet.workers["rollout-0"].state = state
    more = {"loaded": (0,), "died": ("killed",)}.get(event, ())
    there = {
        "loaded": "starting serving suspect leaving",
        "placed": "starting",
        "progressed": "serving suspect leaving",
        "idle": "serving suspect leaving",
        "leave": "starting serving suspect",
        "drained": "leaving",
        "died": "starting serving suspect leaving",
        "freed": "dead",
    }
    if state in there[event].split():
        getattr(fleet, event)("rollout-0", *more, 1.0)
    else:
        with pytest.raises(NoSuchTransition, match=f"rollout-0 is {state}, and cannot have"):
            getattr(fleet, event)("rollout-0", *more, 1.0)


WORK = ("tick", "tick", "load", "load", "progress", "progress", "drain", "free", "report", "publish")
FAULTS = ("kill", "hang", "scale")


@dataclass
class World:
    """Processes that do what they are told, sooner or later, unless they are killed or hang."""

    rng: random.Random
    fleet: Fleet
    now: float = 0.0
    version: int = 0
    alive: set[str] = field(default_factory=set)
    hung: set[str] = field(default_factory=set)
    loading: dict[str, int] = field(default_factory=dict)
    draining: set[str] = field(default_factory=set)
    to_free: set[str] = field(default_factory=set)
    to_report: set[str] = field(default_factory=set)
    ended: bool = False

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Start(name):
                    assert name not in self.alive, "a replacement is another worker"
                    self.alive.add(name)
                    self.loading[name] = 0
                    self.fleet.placed(name, self.now)
                case Load(name, version):
                    assert version == self.fleet.newest
                    self.loading[name] = version
                case Drain(name):
                    self.draining.add(name)
                case Kill(name):
                    self.kill(name)
                case Free(name):
                    assert name not in self.alive or name in self.draining
                    self.alive.discard(name)
                    if self.fleet.workers[name].state is State.DEAD:
                        self.to_free.add(name)
                case EndRun():
                    self.ended = True
        self.check()

    def kill(self, name: str) -> None:
        self.alive.discard(name)
        self.loading.pop(name, None)
        self.draining.discard(name)
        if self.fleet.workers[name].state not in (State.DEAD, State.GONE):
            self.to_report.add(name)

    def happen(self, faults: bool) -> None:
        """One thing, drawn; what is drawn and cannot be now does not happen."""
        # Where nothing fails, all goes on much faster than the limits.
        self.now += self.rng.uniform(0, 8 if faults else 0.2)
        awake = sorted(self.alive - self.hung)
        what = self.rng.choice(WORK + (FAULTS if faults else ()))
        if what == "tick":
            self.do(self.fleet.tick(self.now))
        elif what == "publish" and (faults or not self.fleet.behind):
            self.version += self.rng.randint(0, 1)
            self.do(self.fleet.publish(self.version, self.now))
        elif what == "scale":
            self.fleet.target = self.rng.randint(0, 5)
        elif what == "report" and self.to_report:
            name = self.rng.choice(sorted(self.to_report))
            self.to_report.remove(name)
            if self.fleet.workers[name].state not in (State.DEAD, State.GONE):
                self.do(self.fleet.died(name, "killed", self.now))
        elif what == "free" and self.to_free:
            name = self.rng.choice(sorted(self.to_free))
            self.to_free.remove(name)
            self.do(self.fleet.freed(name, self.now))
        elif awake:
            self.happen_to(self.rng.choice(awake), what)

    def happen_to(self, name: str, what: str) -> None:
        state = self.fleet.workers[name].state
        if what == "kill":
            self.kill(name)
        elif what == "hang":
            self.hung.add(name)
        elif what == "load" and name in self.loading:
            self.do(self.fleet.loaded(name, self.loading.pop(name), self.now))
        elif what == "progress" and state in (State.SERVING, State.SUSPECT, State.LEAVING):
            self.do(self.fleet.progressed(name, self.now))
        elif what == "drain" and name in self.draining and state is State.LEAVING:
            self.draining.remove(name)
            self.alive.discard(name)
            self.do(self.fleet.drained(name, self.now))

    before: dict[str, tuple[State, int | None]] = field(default_factory=dict)

    def check(self) -> None:
        for name, worker in self.fleet.workers.items():
            was, held = self.before.get(name, (State.STARTING, None))
            if worker.state is State.SERVING:
                assert was not in (State.LEAVING, State.DEAD, State.GONE), f"{name} has come back"
                if was is not State.SERVING:
                    assert worker.holds == self.fleet.newest, f"{name} serves an old version"
                assert held is None or worker.holds is None or worker.holds >= held
            assert was is not State.GONE or worker.state is State.GONE
            self.before[name] = worker.state, worker.holds
        assert len(self.fleet.of(*LIVE)) <= max(5, self.fleet.target)


@pytest.mark.parametrize("first", range(0, 2000, 500))
def test_random_histories(first: int):
    many = Limits(start_s=100, silent_s=50, grace_s=10, leave_s=30, backoff_s=2, most_backoff_s=16, failures=10**9)
    for seed in range(first, first + 500):
        rng = random.Random(seed)
        world = World(rng, Fleet("rollout", rng.randint(0, 5), many))
        for _ in range(rng.randint(10, 200)):
            world.happen(faults=True)
        # From here on nothing fails, and what hangs stays so: the fleet heals.
        world.fleet.target = target = rng.randint(1, 5)
        for _ in range(5_000):
            world.happen(faults=False)
            serving = world.fleet.of(State.SERVING)
            if (
                len(serving) == len(world.fleet.of(*LIVE)) == target
                and not world.fleet.behind
                and not world.fleet.of(State.LEAVING, State.DEAD)
                and not world.hung & {worker.name for worker in serving}
            ):
                break
        else:
            pytest.fail(f"seed {seed}: {world.fleet.workers}")
        assert world.fleet.newest == world.version
