"""The autoscaler's rules: by hand, with a run that samples and learns on a clock of its own, and at random."""

import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from orchestrator.supervision.autoscale import Autoscaler, AutoscaleRules, Decision, Observation

RULES = AutoscaleRules(hold_s=30, pause_grow_s=60, pause_shrink_s=300)
LOOK_S = 5
FIGURES = ("learner_wait_share", "groups_ready", "engine_full")

# A look counts for 5 of 30 s, so a mean that has seen x for k looks is x (1 - (5/6)^k). For k = 1 to 8 the factor is
# 0.167, 0.306, 0.421, 0.518, 0.598, 0.665, 0.721, 0.767.
WELL = Observation(learner_wait_share=0.1, groups_ready=4, groups_per_step=8, engine_full=False, serving=2, starting=0)
IDLE = replace(WELL, learner_wait_share=0.0)
SHORT = replace(WELL, learner_wait_share=0.8, groups_ready=1)  # short from the 3rd on: 0.8 x 0.421 = 0.337 > 0.3
SPARE = replace(WELL, learner_wait_share=0.0, groups_ready=8)  # spare, of 2, from the 8th on: 0.767 x 2 > 1.5
NOTHING = replace(WELL, **dict.fromkeys(FIGURES))


@dataclass
class Looks:
    """One every 5 s, from second 0. The fleet does at once what it is told.

    Every other look sees *coming* more groups, which the learner has taken by the next: so a step takes 10 s.
    """

    target: int = 2
    scaler: Autoscaler = field(default_factory=lambda: Autoscaler(1, 4, RULES))
    now: float = -LOOK_S
    coming: int = 1
    changes: list[tuple[float, int]] = field(default_factory=list)

    def until(self, end: float, seen: Observation, **other: Any) -> "Looks":
        """The look at *end* is the last that sees this; those that serve are the target unless *other* says more."""
        while self.now < end:
            self.now += LOOK_S
            saw = replace(seen, **{"serving": self.target} | other)
            if saw.groups_ready is not None and self.now % (2 * LOOK_S) == 0:
                saw = replace(saw, groups_ready=saw.groups_ready + self.coming)
            decision = self.scaler.look(saw, self.target, self.now)
            assert bool(decision.why) == (decision.target != self.target)
            if decision.why:
                self.changes.append((self.now, decision.target))
            self.target = decision.target
        return self


def test_one_more_while_the_learner_waits_and_the_next_after_a_pause():
    # Each time it has held for 30 s before the pause of 60 s, from the first look or the last change, is over.
    assert Looks().until(300, SHORT).changes == [(60, 3), (120, 4)]
    assert Looks(now=995, coming=0).until(1060, SHORT).changes == [(1060, 3)]


def test_one_less_while_groups_wait_for_the_learner_and_the_next_after_a_longer_pause():
    assert Looks(3).until(1000, SPARE).changes == [(300, 2), (600, 1)]


def test_neither_while_both_keep_up():
    assert Looks().until(2000, WELL).changes == []


def test_a_change_of_either_kind_is_followed_by_the_pause_of_the_next():
    assert Looks().until(300, SPARE).until(1000, SHORT).changes[:2] == [(300, 1), (360, 2)]
    assert Looks().until(60, SHORT).until(360, SPARE).changes == [(60, 3), (360, 2)]


def test_a_reason_must_hold_without_a_break():
    # Short from 75, the third figure after 60: 30 s later is 105. No wait at 80 (0.281 in the mean) begins it again.
    assert Looks().until(60, IDLE).until(105, SHORT).changes == [(105, 3)]
    broken = Looks().until(60, IDLE).until(75, SHORT).until(80, IDLE)
    assert broken.until(115, SHORT).changes == [(115, 3)]
    # About 0.39 steps' worth are ready in the mean at 75, and with 2.5 at 80 it is 0.74, of 0.95 seen; at 85, 0.65.
    broken = Looks().until(60, IDLE).until(75, SHORT).until(80, SHORT, groups_ready=20)
    assert broken.until(115, SHORT).changes == [(115, 3)]
    # Spare from 340, the 8th: 370. A wait for a whole look at 345 is 0.167 in the mean, below 0.02 after 12: 405.
    assert Looks().until(300, IDLE).until(370, SPARE).changes == [(370, 1)]
    broken = Looks().until(300, IDLE).until(340, SPARE).until(345, SPARE, learner_wait_share=1.0)
    assert broken.until(435, SPARE).changes == [(435, 1)]


def test_a_learner_that_waits_for_less_than_a_third_of_the_time_is_not_short():
    assert Looks().until(1000, replace(SHORT, learner_wait_share=0.30)).changes == []
    # 0.35 (1 - (5/6)^11) = 0.303, so short from 55.
    assert Looks().until(85, replace(SHORT, learner_wait_share=0.35)).changes == [(85, 3)]


def test_a_learner_that_waits_for_a_long_answer_while_the_others_are_ready_is_not_short():
    assert Looks().until(1000, replace(SHORT, groups_ready=7)).changes == []
    assert Looks().until(60, replace(SHORT, groups_ready=5)).changes == [(60, 3)]


def test_none_is_spare_while_the_learner_waits_or_less_than_a_step_waits_for_it():
    assert Looks().until(1000, replace(SPARE, learner_wait_share=0.03)).changes == []
    assert Looks().until(1000, replace(SPARE, groups_ready=6)).changes == []


def test_a_step_that_waits_half_of_the_time_makes_one_of_four_spare_and_none_of_two():
    def every_other(looks: Looks) -> Looks:
        while looks.now < 600 and not looks.changes:
            looks.until(looks.now + LOOK_S, SPARE).until(looks.now + LOOK_S, replace(SPARE, groups_ready=0))
        return looks

    # Between 0.45 and 0.55 in the mean: more than 1.5 of 4 workers, less than 1.5 of 2.
    assert every_other(Looks(4)).changes == [(300, 3)]
    assert every_other(Looks(2)).changes == []


@pytest.mark.parametrize("missing", FIGURES)
def test_a_missing_figure_freezes_and_begins_the_hold_again(missing: str):
    unknown = {missing: None}
    assert Looks().until(1000, replace(SHORT, **unknown)).changes == []
    assert Looks().until(1000, replace(SPARE, **unknown)).changes == []
    # Missing at 55, so short from 70: 100. Missing at 295, so spare from 335: 365.
    assert Looks().until(50, SHORT).until(55, SHORT, **unknown).until(100, SHORT).changes == [(100, 3)]
    assert Looks().until(290, SPARE).until(295, SPARE, **unknown).until(365, SPARE).changes == [(365, 1)]


def test_a_full_engine_vetoes_one_less_only_while_it_is_full_and_one_more_never():
    full = {"engine_full": True}
    assert Looks().until(1000, SPARE, **full).until(1005, SPARE).changes == [(1005, 1)]
    assert Looks().until(60, SHORT, **full).changes == [(60, 3)]
    assert Looks().until(50, SHORT).until(55, SHORT, **full).until(60, SHORT).changes == [(60, 3)]


def test_no_more_are_asked_for_while_one_starts_or_is_missing():
    assert Looks().until(1000, SHORT, starting=1).changes == []
    assert Looks().until(1000, SHORT, serving=1).changes == []
    assert Looks(3).until(300, SPARE, serving=2, starting=1).changes == [(300, 2)]  # one less is right all the same


def test_what_was_seen_of_a_fleet_of_another_size_says_nothing_about_this_one():
    # The second serves from 105, so the figures from 110 on are those of two: short from 120.
    assert Looks().until(100, SHORT, serving=1, starting=1).until(150, SHORT).changes == [(150, 3)]


def test_a_target_outside_is_brought_inside_at_once_whatever_is_known():
    assert Looks(9).until(0, NOTHING).changes == [(0, 4)]
    looks = Looks(1, Autoscaler(2, 4, RULES)).until(5, SPARE)
    assert looks.changes == [(0, 2)]
    looks.scaler.min = looks.scaler.max = 3
    assert looks.until(1000, SHORT).until(2000, SPARE).changes == [(0, 2), (10, 3)]


def test_a_target_that_somebody_else_has_set_is_a_change():
    looks = Looks().until(50, SHORT)
    looks.target = 3
    assert looks.until(200, SHORT).changes == [(115, 4)]  # they set it at 50, which is seen at 55
    looks = Looks(3).until(50, SHORT, serving=2, starting=1)
    looks.target = 2  # what starts is let go, and as many serve as before
    assert looks.until(115, SHORT).changes == [(115, 3)]


WAITS = replace(WELL, learner_wait_share=1.0, groups_ready=5)
LEARNS = replace(WELL, learner_wait_share=0.0, groups_ready=4)  # fewer: it has taken a step's


def test_where_a_long_step_stands_decides_nothing():
    def five_steps(wait_s: int) -> list[tuple[float, int]]:
        looks = Looks(coming=0).until(195, WAITS)
        for begins in range(200, 1200, 200):
            looks.until(begins + 195 - wait_s, LEARNS).until(begins + 195, WAITS)
        return looks.changes

    # A look counts for 5 of 200 s. Of 40 s of waiting in 200 the mean is at most
    # (1 - 0.975^8) / (1 - 0.975^40) = 0.29, of 100 s (1 - 0.975^20) / (1 - 0.975^40) = 0.62.
    assert five_steps(40) == []
    assert five_steps(100) != []


def test_that_the_learner_never_waits_is_known_once_a_step_was_watched():
    # The first step began at 600. 0.6 of 600 s is seen after 110 looks, 1 - (1 - 5/600)^110 = 0.602: held 30 s later.
    looks = Looks(4, coming=0).until(595, WAITS)
    assert looks.until(1175, SPARE).changes == [(600 + 109 * 5 + 30, 3)]


def test_a_learner_that_waits_for_its_first_groups_says_nothing():
    assert Looks(coming=0).until(2000, WAITS).changes == []
    # It learns a little in each look, and what comes is taken at once: seen at 5.
    assert Looks(coming=0).until(60, SHORT, groups_ready=0).changes == [(60, 3)]


def test_the_pause_before_one_less_doubles_each_time_that_it_was_taken_back():
    looks, waited = Looks(), []
    for _ in range(6):
        grown = looks.now
        while looks.target == 2:
            looks.until(looks.now + LOOK_S, SPARE)
        waited.append(looks.now - max(grown, 0))
        looks.until(looks.now + 60, SHORT)
        assert looks.target == 2
    assert waited == [300, 600, 1200, 2400, 4800, 4800]


def test_one_less_that_lasted_until_the_next_ends_the_row():
    looks = Looks(3).until(300, SPARE).until(360, SHORT)
    looks.until(1560, SPARE).until(1620, SHORT).until(2220, SPARE)
    assert looks.changes == [(300, 2), (360, 3), (960, 2), (1560, 1), (1620, 2), (2220, 1)]


PLACES = 2


@dataclass
class World:
    """A run, second by second: each worker samples PLACES groups at once, and the learner takes them in order.

    One group is sampled for about *answer_s*. So the learner never waits long if there are
    groups_per_step x answer_s / learn_s / PLACES workers: *demand*.
    """

    seed: int
    demand: float
    learn_s: int
    target: int
    max: int = 10
    max_staleness: int = 2
    groups_per_step: int = 8
    start_s: int = 40
    lifetime_s: float = float("inf")
    missing: tuple[str, ...] = ()
    now: int = 0
    changes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.scaler = Autoscaler(1, self.max, RULES)
        self.serve_from = [0.0] * self.target
        self.left: list[float] = []  # of each group that is not taken, in order, the seconds until it is complete
        self.release_at: list[float] = []
        self.taken_at, self.waited_s, self.waited_in_all_s = 0, 0, 0

    def until(self, end: int) -> "World":
        while self.now < end:
            self.now += 1
            self.sample()
            self.learn()
            self.serve_from = [
                self.now + self.start_s if self.rng.random() < 1 / self.lifetime_s and at <= self.now else at
                for at in self.serve_from
            ]
            if self.now % LOOK_S == 0:
                self.look()
        return self

    @property
    def serving(self) -> int:
        return sum(at <= self.now for at in self.serve_from)

    def sample(self) -> None:
        self.release_at = [at for at in self.release_at if at > self.now]
        answer_s = self.demand * self.learn_s * PLACES / self.groups_per_step
        held = len(self.left) + len(self.release_at) * self.groups_per_step
        for _ in range((self.max_staleness + 1) * self.groups_per_step - held):
            self.left.append(answer_s * self.rng.uniform(0.5, 1.5))
        awaited = [number for number, left in enumerate(self.left) if left > 0]
        for number in awaited[: self.serving * PLACES]:
            self.left[number] -= 1
        self.full = len(awaited) > self.serving * PLACES

    def learn(self) -> None:
        if self.taken_at and self.now < self.taken_at + self.learn_s:
            return
        if all(left <= 0 for left in self.left[: self.groups_per_step]):
            del self.left[: self.groups_per_step]
            self.taken_at = self.now
            self.release_at.append(self.now + self.learn_s + 2)
        else:
            self.waited_s += 1
            self.waited_in_all_s += 1

    def look(self) -> None:
        seen = Observation(
            learner_wait_share=self.waited_s / LOOK_S,
            groups_ready=sum(left <= 0 for left in self.left),
            groups_per_step=self.groups_per_step,
            engine_full=self.full,
            serving=self.serving,
            starting=len(self.serve_from) - self.serving,
        )
        self.waited_s = 0
        decision = self.scaler.look(replace(seen, **dict.fromkeys(self.missing)), self.target, self.now)
        self.target = decision.target
        if decision.why:
            self.changes.append(self.target)
        self.serve_from += [self.now + self.start_s] * (self.target - len(self.serve_from))
        del self.serve_from[self.target :]

    def wait_share_until(self, end: int) -> float:
        began, waited_s = self.now, self.waited_in_all_s
        self.until(end)
        return (self.waited_in_all_s - waited_s) / (end - began)


HOUR = 3600


@pytest.mark.parametrize("learn_s", [5, 20, 60, 300])
def test_longer_answers_let_it_grow_to_what_is_needed_and_stay(learn_s: int):
    world = World(seed=1, demand=0.8, learn_s=learn_s, target=1).until(HOUR)
    assert world.target == 1
    # Three workers leave the learner waiting for 1 - 3/3.6 = 0.17 of the time, which is little; two for 0.44.
    world.demand = 3.6
    world.until(2 * HOUR)
    assert max(world.changes) in (3, 4)
    world.changes.clear()
    assert world.wait_share_until(5 * HOUR) < 0.3
    assert set(world.changes) <= {2, 3, 4}
    assert len(world.changes) <= 8  # it tries whether one less will do, less and less often


@pytest.mark.parametrize("learn_s", [5, 20, 60, 300])
def test_shorter_answers_let_it_shrink_to_what_is_needed(learn_s: int):
    world = World(seed=1, demand=6.4, learn_s=learn_s, target=7).until(HOUR)
    assert world.target >= 6
    world.demand = 1.6
    world.until(3 * HOUR)
    world.changes.clear()
    assert world.wait_share_until(5 * HOUR) < 0.15
    assert world.target <= 3
    assert len(world.changes) <= 5


@pytest.mark.parametrize("learn_s", [20, 60, 300])
@pytest.mark.parametrize("period_s", [60, 200, 600, 1800])
def test_a_load_that_swings_changes_the_fleet_few_times_an_hour(learn_s: int, period_s: int):
    world = World(seed=1, demand=2, learn_s=learn_s, target=3)
    for period in range(6 * HOUR // period_s):
        world.demand = (2, 4)[period % 2]
        world.until((period + 1) * period_s)
    assert len(world.changes) <= 6 * 6
    assert set(world.changes) <= {1, 2, 3, 4, 5}


@pytest.mark.parametrize("lifetime_s", [60, 200, 1000])
@pytest.mark.parametrize("learn_s", [20, 300])
def test_workers_that_die_and_come_back_do_not_let_the_target_run_away(learn_s: int, lifetime_s: int):
    world = World(seed=1, demand=3.6, learn_s=learn_s, target=3, lifetime_s=lifetime_s).until(4 * HOUR)
    assert set(world.changes) <= {2, 3, 4, 5}
    world.changes.clear()
    world.lifetime_s = float("inf")
    assert world.wait_share_until(6 * HOUR) < 0.3
    assert set(world.changes) <= {2, 3, 4}


def test_a_worker_that_never_comes_to_serve_is_not_answered_by_another():
    world = World(seed=1, demand=3.6, learn_s=20, target=2)
    world.serve_from[1] = float("inf")
    assert world.until(2 * HOUR).changes == []


def test_it_does_not_grow_beyond_the_most():
    assert World(seed=1, demand=8, learn_s=20, target=1, max=3).until(4 * HOUR).changes == [2, 3]


@pytest.mark.parametrize("missing", FIGURES)
@pytest.mark.parametrize("demand", [0.5, 3.6])
def test_a_run_of_which_a_figure_is_missing_is_left_as_it_is(missing: str, demand: float):
    world = World(seed=1, demand=demand, learn_s=20, target=2, missing=(missing,)).until(2 * HOUR)
    assert world.changes == []
    world.missing = ()
    assert world.until(4 * HOUR).changes != []


@dataclass
class History:
    """Looks at random times, at what stays alike for some looks; now and then somebody changes target or bounds."""

    rng: random.Random
    now: float = 0.0
    grew: int = 0
    shrank: int = 0

    def go(self) -> None:
        rng = self.rng
        scaler = Autoscaler(rng.randint(1, 3), rng.randint(3, 8), RULES)
        target, changed, before = rng.randint(0, 10), 0.0, None
        for _ in range(rng.randint(1, 8)):
            like = rng.choice((SHORT, SHORT, SPARE, SPARE, WELL, NOTHING))
            if rng.random() < 0.1:
                scaler.min, scaler.max = rng.randint(1, 3), rng.randint(3, 8)
            if rng.random() < 0.1:
                target = rng.randint(0, 10)
            for _ in range(rng.randint(1, 60)):
                self.now += rng.uniform(0, 15)
                if target != before:
                    changed = self.now
                seen = self.seen(like, target)
                decision = scaler.look(seen, target, self.now)
                self.check(scaler, seen, target, decision, self.now - changed)
                if decision.target != target:
                    changed = self.now
                target = before = decision.target

    def seen(self, like: Observation, target: int) -> Observation:
        rng = self.rng
        starting = rng.randint(1, 2) if rng.random() < 0.02 else 0
        lost = 1 if rng.random() < 0.02 else 0
        unknown = {rng.choice(FIGURES): None} if rng.random() < 0.01 else {}
        full = {"engine_full": rng.random() < 0.1} if like.engine_full is not None else {}
        ready = {"groups_ready": like.groups_ready + rng.randint(0, 1)} if like.groups_ready is not None else {}
        workers = {"serving": max(0, target - lost), "starting": starting}
        return replace(like, **full | ready | workers | unknown)

    def check(self, scaler: Autoscaler, seen: Observation, target: int, decision: Decision, since_s: float) -> None:
        assert scaler.min <= decision.target <= scaler.max
        assert bool(decision.why) == (decision.target != target)
        if decision.target == target or not scaler.min <= target <= scaler.max:
            return
        assert None not in (seen.learner_wait_share, seen.groups_ready, seen.engine_full)
        if decision.target > target:
            self.grew += 1
            assert decision.target == target + 1
            assert since_s >= RULES.pause_grow_s
            assert seen.starting == 0
            assert seen.serving >= target
        else:
            self.shrank += 1
            assert decision.target == target - 1
            assert since_s >= RULES.pause_shrink_s
            assert not seen.engine_full


@pytest.mark.parametrize("first", range(0, 3000, 1000))
def test_random_histories(first: int):
    grew = shrank = 0
    for seed in range(first, first + 1000):
        history = History(random.Random(seed))
        history.go()
        grew, shrank = grew + history.grew, shrank + history.shrank
    assert grew > 300
    assert shrank > 300
