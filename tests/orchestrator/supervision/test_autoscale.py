"""The autoscaler's rules: by hand, with a run that samples and learns on a clock of its own, and at random."""

from dataclasses import dataclass, field, replace

import pytest

from orchestrator.supervision.autoscale import Autoscaler, AutoscaleRules, Observation

RULES = AutoscaleRules(hold_s=30, pause_grow_s=60, pause_shrink_s=300)
LOOK_S = 5

WELL = Observation(learner_wait_share=0.1, groups_ready=4, groups_per_step=8, engine_full=False, serving=2, starting=0)
SHORT = replace(WELL, learner_wait_share=0.8, groups_ready=1)
SPARE = replace(WELL, learner_wait_share=0.0, groups_ready=8)
UNKNOWN = {"learner_wait_share": None, "groups_ready": None, "engine_full": None}


@dataclass
class Looks:
    """One every 5 s, from second 0. The fleet does at once what it is told."""

    scaler: Autoscaler = field(default_factory=lambda: Autoscaler(1, 4, RULES))
    target: int = 2
    now: float = -LOOK_S
    changes: list[tuple[float, int]] = field(default_factory=list)

    def until(self, end: float, seen: Observation, serving: int | None = None) -> "Looks":
        """The look at *end* is the last of those that see this; *serving* is the target if it is not given."""
        while self.now < end:
            self.now += LOOK_S
            serve = self.target if serving is None else serving
            decision = self.scaler.look(replace(seen, serving=serve), self.target, self.now)
            assert bool(decision.why) == (decision.target != self.target)
            if decision.target != self.target:
                self.changes.append((self.now, decision.target))
            self.target = decision.target
        return self


def test_one_more_while_the_learner_waits_and_the_next_after_a_pause():
    # The pause after the first look ends at 60, and again 60 s after each change.
    assert Looks().until(300, SHORT).changes == [(60, 3), (120, 4)]


def test_one_less_while_groups_wait_for_the_learner_and_the_next_after_a_longer_pause():
    assert Looks(target=3).until(1000, SPARE).changes == [(300, 2), (600, 1)]


def test_neither_while_both_keep_up():
    assert Looks().until(2000, WELL).changes == []


def test_a_learner_that_waits_for_a_long_answer_gets_no_further_worker():
    # 6 of 8 groups are three quarters of a step's: not few.
    assert Looks().until(1000, replace(SHORT, groups_ready=6)).changes == []
    assert Looks().until(60, replace(SHORT, groups_ready=5)).changes == [(60, 3)]


def test_a_learner_that_waits_for_a_third_of_the_time_is_short_and_for_less_it_is_not():
    assert Looks().until(1000, replace(SHORT, learner_wait_share=0.30)).changes == []
    assert Looks().until(60, replace(SHORT, learner_wait_share=0.31)).changes == [(60, 3)]


def test_none_is_spare_while_the_learner_waits_now_and_then_or_less_than_a_step_waits_for_it():
    assert Looks().until(1000, replace(SPARE, learner_wait_share=0.02)).changes == []
    assert Looks().until(1000, replace(SPARE, groups_ready=7)).changes == []
    assert Looks().until(300, replace(SPARE, learner_wait_share=0.01)).changes == [(300, 1)]


def test_a_reason_must_hold_without_a_break():
    # Holds from 65, the first look that sees it: 30 s are over at 95. At 90 they are not, and one look begins again.
    assert Looks().until(60, WELL).until(200, SHORT).changes[0] == (100, 3)
    # The mean of the waits passes 0.3 at 70: (5/30) x 0.8 + (25/30) x 0.1 = 0.217 at 65, 0.314 at 70.
    looks = Looks().until(60, WELL).until(95, SHORT).until(100, replace(SHORT, groups_ready=80))
    assert looks.until(125, SHORT).changes == []


@pytest.mark.parametrize("missing", UNKNOWN)
def test_a_missing_figure_begins_the_hold_again(missing: str):
    unknown = {missing: None}
    assert Looks().until(1000, replace(SHORT, **unknown)).changes == []
    assert Looks().until(1000, replace(SPARE, **unknown)).changes == []
    # It is missing at 55; what is seen from 60 on has held for 30 s at 90.
    assert Looks().until(50, SHORT).until(55, replace(SHORT, **unknown)).until(200, SHORT).changes[0] == (90, 3)
    looks = Looks().until(295, SPARE).until(300, replace(SPARE, **unknown)).until(400, SPARE)
    assert looks.changes == [(335, 1)]


def test_a_full_engine_vetoes_one_less_for_as_long_as_it_is_full_and_does_not_veto_one_more():
    full = replace(SPARE, engine_full=True)
    assert Looks().until(1000, full).until(1005, SPARE).changes == [(1005, 1)]
    assert Looks().until(60, replace(SHORT, engine_full=True)).changes == [(60, 3)]
    assert Looks().until(30, SHORT).until(35, replace(SHORT, engine_full=True)).until(60, SHORT).changes == [(60, 3)]
