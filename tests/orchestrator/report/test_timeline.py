"""Lanes, window, events and goodput, worked out by hand."""

import numpy as np
import pytest

from orchestrator.report.timeline import BINS, RunTime, mean_level, timeline
from tests.orchestrator.report.runs_by_hand import event, made_up, sample

P = 2
"""Groups a step."""


def one_step() -> list:
    """From 100 s to 200 s: four groups fill the window, of which a step takes two at 150 s."""
    return [
        event("began", 100.0, version=0),
        *(event("admitted", 100.0, ticket=ticket, prompt="0/basic/center") for ticket in range(4)),
        event("taken", 150.0, step=1, groups=P),
        event("trained", 170.0, step=1),
        event("sent", 175.0, version=1),
        event("served", 180.0, version=1),
        event("ended", 200.0, worker="rollout-1", why="killed <b>"),
    ]


def at(values: list, second: float) -> float:
    """Of a lane over the 100 s, in the middle of the bin of *second*."""
    return values[int(second / 100 * BINS)]


def test_time_between_two_drivers_takes_no_room():
    events = [event("began", 100.0, version=0), event("served", 110.0, version=1)]
    events += [event("began", 5000.0, version=1), event("served", 5020.0, version=2)]
    time = RunTime(events)
    assert time.length == 30.0
    assert time([100.0, 110.0, 3000.0, 5000.0, 5020.0, 9000.0]).tolist() == [0.0, 10.0, 10.0, 10.0, 30.0, 30.0]


def test_events_before_a_driver_began_stand_behind_its_line_and_count():
    time = RunTime([event("began", 100.0, version=0), event("starting", 90.0, worker="rollout-0")])
    assert time([90.0, 100.0]).tolist() == [0.0, 10.0]


def test_the_level_of_spans_is_their_mean_between_edges():
    starts, ends = np.array([0.0, 0.5]), np.array([1.0, 2.5])
    # [0, 1): one all the time, one for half of it. [1, 2): the second alone. [2, 4): for a quarter of it.
    assert mean_level(starts, ends, np.array([0.0, 1.0, 2.0, 4.0])).tolist() == [1.5, 1.0, 0.25]


def test_lanes_say_who_worked_when():
    rows = [{"step": 1, "learn_s": 20.0}]
    samples = [sample(1, ticket, 0, worker=f"rollout-{ticket}") for ticket in range(2)]  # from 100 s to 103 s
    lanes = {lane["name"]: lane["level"] for lane in timeline(made_up(rows, one_step(), samples))["lanes"]}
    assert list(lanes) == ["rollout-0", "rollout-1", "learner", "publish"]
    assert (at(lanes["rollout-0"], 2), at(lanes["rollout-0"], 4)) == (1.0, 0.0)
    assert [at(lanes["learner"], second) for second in (48, 51, 69, 72)] == [0.0, 1.0, 1.0, 0.0]
    assert [at(lanes["publish"], second) for second in (74, 76, 82)] == [0.0, 1.0, 0.0]


def test_the_window_is_filled_by_admission_and_emptied_by_a_served_version():
    window = timeline(made_up(events=one_step()))["window"]
    assert window["cap"] == 4  # (1 + 1) * 2
    assert [at(window["held"], second) for second in (10, 60, 79, 81)] == [4, 4, 4, 2]
    assert [at(window["waiting"], second) for second in (10, 60, 81)] == [4, 2, 2]


def test_groups_are_ready_when_their_last_answer_is_scored():
    samples = [sample(1, 0, 0), sample(1, 1, 0), sample(1, 1, 1)]  # scored at 104 s
    window = timeline(made_up(events=one_step(), samples=samples))["window"]
    assert [at(window["ready"], second) for second in (2, 10, 60)] == [0, 2, 0]


def test_what_is_ready_is_unknown_where_not_all_groups_were_kept():
    assert timeline(made_up(events=one_step(), samples=[sample(1, 0, 0)]))["window"]["ready"] is None


def test_a_new_driver_begins_with_an_empty_window():
    events = [*one_step(), event("began", 200.0, version=1), event("admitted", 200.0, ticket=2, prompt="a")]
    assert timeline(made_up(events=[*events, event("served", 300.0, version=2)]))["window"]["held"][-20] == 1


def test_events_stand_on_the_same_axis_each_in_its_line():
    found = timeline(made_up(events=one_step()))
    shown = [(when, found["lines"][line], text) for when, line, text in found["events"]]
    assert shown == [
        (0.0, "driver", "a driver goes on behind version 0"),
        (80.0, "publish", "version 1 served"),
        (100.0, "lost", "rollout-1: killed <b>"),
    ]


def test_goodput_sums_to_a_hundred_percent():
    spent = [(6.0, 1.0, 3.0, 0.0), (2.0, 1.0, 5.0, 2.0)]
    names = ("productive_s", "overhead_s", "idle_s", "wasted_s")
    rows = [{"step": step, **dict(zip(names, values, strict=True))} for step, values in enumerate(spent, 1)]
    found = timeline(made_up(rows, [*one_step(), event("served", 200.0, version=2)]))["goodput"]
    assert found["total"] == [40.0, 10.0, 40.0, 10.0]  # 8, 2, 8 and 2 of 20 s
    assert found["shares"] == [[60.0, 20.0], [10.0, 10.0], [30.0, 50.0], [0.0, 20.0]]
    assert found["at"] == [80.0, 100.0]


@pytest.mark.parametrize("events", [[], one_step()])
def test_rows_without_goodput_have_none(events):
    found = timeline(made_up([{"step": 1, "learn_s": 1.0}], events))
    assert found is None or found["goodput"] is None
