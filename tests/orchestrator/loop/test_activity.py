"""What a run's time went into, by hand: the clock stands at what the test says."""

import pytest

from orchestrator.loop.activity import Activity, Bucket, Phase


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def activity(clock) -> Activity:
    return Activity(clock)


def spend(activity: Activity, clock: Clock, *phases: tuple[Phase, float]) -> None:
    for phase, seconds in phases:
        activity.enter(phase)
        clock.now += seconds


def test_the_four_buckets_by_hand(activity, clock):
    clock.now += 5  # starting
    steps = [(Phase.WAITING, 2), (Phase.LEARNING, 10), (Phase.PUBLISHING, 1), (Phase.CHECKPOINTING, 3)]
    spend(activity, clock, *steps, (Phase.WAITING, 4), (Phase.LEARNING, 6), (Phase.SAVING, 7))
    assert activity.take() == {
        "productive_s": 16,  # 10 + 6
        "overhead_s": 16,  # 5 + 1 + 3 + 7
        "idle_s": 6,  # 2 + 4
        "wasted_s": 0,
        "overlap_s": 0,
    }


def test_what_is_taken_sums_to_the_time_in_between_also_in_the_middle_of_a_step(activity, clock):
    spend(activity, clock, (Phase.WAITING, 1.5), (Phase.LEARNING, 2.25))
    first = activity.take()
    clock.now += 0.75  # of the same step
    spend(activity, clock, (Phase.PUBLISHING, 0.5))
    second = activity.take()
    assert (first["productive_s"], first["idle_s"]) == (2.25, 1.5)
    assert (second["productive_s"], second["overhead_s"], second["idle_s"]) == (0.75, 0.5, 0)


def test_a_step_in_which_the_learner_is_lost_was_for_nothing_until_it_stands_where_it_stood(activity, clock):
    spend(activity, clock, (Phase.LEARNING, 4))
    activity.lost()
    clock.now += 20
    activity.lost()  # once more, while it recovers
    clock.now += 10
    assert activity.phase is Phase.RECOVERING
    activity.recovered()
    assert activity.phase is Phase.LEARNING
    clock.now += 3  # the step once more
    spend(activity, clock, (Phase.WAITING, 1))
    assert activity.take() == {"productive_s": 3, "overhead_s": 0, "idle_s": 1, "wasted_s": 34, "overlap_s": 0}


def test_what_waited_when_the_learner_was_lost_did_wait_and_what_it_enters_meanwhile_is_what_it_does_then(
    activity, clock
):
    spend(activity, clock, (Phase.WAITING, 2))
    activity.lost()
    clock.now += 5
    spend(activity, clock, (Phase.LEARNING, 6))  # it has its groups, and the learner is not there yet
    assert activity.phase is Phase.RECOVERING
    activity.recovered()
    clock.now += 7
    assert activity.take() == {"productive_s": 7, "overhead_s": 0, "idle_s": 2, "wasted_s": 11, "overlap_s": 0}


def test_what_may_turn_out_wasted_is_counted_when_it_has_ended(activity, clock):
    spend(activity, clock, (Phase.WAITING, 2), (Phase.LEARNING, 8))
    assert activity.seconds()[Bucket.PRODUCTIVE] == 0
    activity.lost()
    assert activity.seconds()[Bucket.WASTED] == 8
    activity.recovered()
    spend(activity, clock, (Phase.LEARNING, 5), (Phase.WAITING, 1))
    assert activity.seconds() == {Bucket.PRODUCTIVE: 5, Bucket.OVERHEAD: 0, Bucket.IDLE: 3, Bucket.WASTED: 8}


def test_overlap_is_the_time_in_which_any_group_was_sampled_while_a_step_was_made(activity, clock):
    # One group from 0 to 3, a second from 2 to 3, a third from 5 to 7; the step from 1 to 6: 1 to 3, and 5 to 6.
    with activity.sampling():
        spend(activity, clock, (Phase.WAITING, 1), (Phase.LEARNING, 1))
        with activity.sampling():
            clock.now += 1
    clock.now += 2  # nobody samples
    assert activity.overlap_s() == 2
    with activity.sampling():
        clock.now += 1
        spend(activity, clock, (Phase.PUBLISHING, 1))
    assert activity.take()["overlap_s"] == 3
    assert activity.take()["overlap_s"] == 0


def test_nothing_overlaps_with_a_learner_that_recovers(activity, clock):
    with activity.sampling():
        spend(activity, clock, (Phase.LEARNING, 2))
        activity.lost()
        clock.now += 9
        activity.recovered()
        clock.now += 1
    assert activity.overlap_s() == 3
