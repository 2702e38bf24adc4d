"""What is said of a run that goes wrong, and of one that could go faster."""

import pytest

from orchestrator.report.advice import RECENT, Standing, advise, headline
from tests.orchestrator.report.runs_by_hand import event

NOW = 1000.0
GOOD = {"reward": 2.5, "step_s": 10.0, "wait_s": 1.0, "learn_s": 8.0, "with_signal": 0.9, "cut_off": 0.0}
GOOD |= {"sampler_kl": 1e-4, "staleness": 1.0, "loss": 0.1, "grad_norm": 1.0, "scoring_full": 0.1}


def standing(steps: int = 5, ago: float = 5.0, running: bool = True, events=(), **changes) -> Standing:
    """Of 20 steps *steps* are made, the last so many seconds *ago*."""
    rows = [{"step": step, **GOOD, **changes} for step in range(1, steps + 1)]
    known = [event("began", 1.0, version=0), event("served", NOW - ago, version=steps), *events]
    return Standing(rows=rows, events=known, steps=20, max_staleness=1, running=running, now=NOW)


def alarms(it: Standing) -> str:
    return " ".join(advise(it).alarms)


def test_a_run_that_goes_well_has_neither_alarm_nor_hint():
    assert (advise(standing()).alarms, advise(standing()).hints) == ((), ())


@pytest.mark.parametrize(("ago", "stalled"), [(60.0, False), (61.0, True)])
def test_a_run_is_stalled_behind_six_median_steps(ago, stalled):
    assert ("No step for" in alarms(standing(ago=ago))) == stalled  # steps take 10 s


@pytest.mark.parametrize(("ago", "stalled"), [(30.0, False), (31.0, True)])
def test_steps_of_a_second_are_given_half_a_minute(ago, stalled):
    assert ("No step for" in alarms(standing(ago=ago, step_s=1.0))) == stalled


@pytest.mark.parametrize("it", [standing(ago=500.0, running=False), standing(steps=20, ago=500.0)])
def test_who_has_ended_is_not_stalled(it):
    assert alarms(it) == ""


@pytest.mark.parametrize(
    ("events", "what"),
    [
        ([], "groups: rollout or reward workers"),
        ([event("taken", 950.0, step=6)], "the learner, which makes step 6"),
        ([event("taken", 950.0, step=6), event("trained", 951.0, step=6)], "version 6 to be taken over"),
    ],
)
def test_a_stalled_run_says_which_stage_it_waits_for(events, what):
    assert what in alarms(standing(ago=100.0, events=events))


@pytest.mark.parametrize(
    ("at_limit", "beyond", "said"),
    [
        ({"with_signal": 0.5}, {"with_signal": 0.49}, "51% of the groups have equal rewards"),
        ({"cut_off": 0.25}, {"cut_off": 0.26}, "26% of the answers are cut off"),
        ({"sampler_kl": 0.01}, {"sampler_kl": 0.011}, "sampler_kl is 0.011"),
        ({"loss": -5.0}, {"loss": float("nan")}, "not finite"),
    ],
)
def test_an_alarm_begins_beyond_its_limit(at_limit, beyond, said):
    assert alarms(standing(**at_limit)) == ""
    assert said in alarms(standing(**beyond))


def test_alarms_look_at_the_last_steps_alone():
    it = standing(steps=RECENT)
    bad = [{**row, "cut_off": 1.0} for row in it.rows]
    late = Standing(rows=[*bad, *it.rows], events=it.events, steps=40, max_staleness=1, running=True, now=NOW)
    assert alarms(late) == ""


def lost(count: int) -> list:
    return [event("ended", 996.0 + place, worker="rollout-1", why="killed") for place in range(count)]


def test_three_workers_lost_since_the_last_step_are_an_alarm():
    assert "3 workers were lost since the last step (rollout-1)" in alarms(standing(events=lost(3)))
    assert alarms(standing(events=lost(2))) == ""
    assert alarms(standing(events=[*lost(3), event("trained", 999.0, step=6)])) == ""


@pytest.mark.parametrize(
    ("wait_s", "hint"), [(3.1, "31% of the time, though samples"), (0.4, "never waits"), (3.0, ""), (0.5, "")]
)
def test_who_waits_for_whom_is_a_hint(wait_s, hint):
    found = " ".join(advise(standing(wait_s=wait_s)).hints)  # of 10 s, with samples as old as they may be
    assert hint in found
    assert bool(found) == bool(hint)


def test_full_reward_workers_are_a_hint():
    assert "full 95% of the time" in advise(standing(scoring_full=0.95)).hints[0]


def test_where_there_is_an_alarm_there_is_no_hint():
    found = advise(standing(scoring_full=0.95, cut_off=1.0))
    assert (len(found.alarms), found.hints) == (1, ())


def test_the_headline_says_where_the_run_is():
    assert headline(standing()) == "Step 5 of 20 was made 5.0 s ago; one takes 10 s: reward +2.50."
    assert headline(standing(steps=20)) == "All 20 steps are made: reward +2.50."
    stopped = headline(standing(ago=600.0, running=False))
    assert stopped.startswith("Stopped at step 5 of 20 10 min ago: reward +2.50.")
    assert headline(standing(steps=0)) == "No step of 20 is made yet."


def test_the_headline_of_a_supervised_run_has_its_loss():
    rows = [{"step": 1, "loss": 0.5, "step_s": 1.0}]
    it = Standing(rows=rows, events=[], steps=1, max_staleness=0, running=False, now=NOW)
    assert headline(it) == "All 1 steps are made: loss 0.5000."
    assert alarms(it) == ""
