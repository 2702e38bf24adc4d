"""What goes to Ray's metrics page, seen by stand-ins for Ray's objects: they keep the newest of each."""

from collections import defaultdict
from typing import Any

import pytest

from orchestrator.cluster import metrics_page
from orchestrator.cluster.metrics_page import RayMetrics
from orchestrator.cluster.metrics_table import METRICS, Metric
from orchestrator.loop.activity import Activity, Phase
from orchestrator.loop.window import Window
from orchestrator.supervision.fleet import Fleet, Limits
from records.samples import PolicyVersion
from tests.fakes import make_group, make_prompt, make_scored

Labelled = dict[tuple[str, ...], float]


class Kept:
    """The values of one metric, by the values of its labels; what is set again is counted by *sets*."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.values: Labelled = defaultdict(float)
        self.seen: list[float] = []
        self.sets = 0

    def set_default_tags(self, tags: dict[str, str]) -> None:
        assert tags == {"run": "first"}

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert self.metric.kind == "gauge"
        self.values[self._labels(tags)] = value
        self.sets += 1

    def inc(self, more: float, tags: dict[str, str] | None = None) -> None:
        assert self.metric.kind == "counter"
        assert more > 0
        self.values[self._labels(tags or {})] += more

    def observe(self, value: float) -> None:
        assert self.metric.kind == "histogram"
        self.seen.append(value)

    def _labels(self, tags: dict[str, str]) -> tuple[str, ...]:
        assert tuple(tags) == self.metric.labels
        return tuple(tags.values())


@pytest.fixture
def kept(monkeypatch) -> dict[str, Kept]:
    made: dict[str, Kept] = {}

    def make(metric: Metric) -> Any:
        return made.setdefault(metric.name.removeprefix("star_r1_"), Kept(metric))

    monkeypatch.setattr(metrics_page, "_make", make)
    return made


def look(page: RayMetrics, activity: Activity | None = None, fleets: tuple[Fleet, ...] = ()) -> None:
    page.look(activity or Activity(), fleets, None)


def test_names_are_each_in_the_table_once_and_say_the_unit():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    assert all(metric.name.endswith("_total") == (metric.kind == "counter") for metric in METRICS)
    assert all("seconds" in metric.name for metric in METRICS if metric.unit == "s")


def test_a_row_becomes_gauges_and_what_the_table_does_not_list_is_the_task_s(kept):
    page = RayMetrics("first")
    page.publish({"step": 3, "version": 3, "reward": 1.5, "reward/format": 0.5, "exact": 0.25, "idle_s": 9.0})
    look(page)
    assert kept["step"].values == {(): 3}
    assert kept["reward"].values == {(): 1.5}
    assert kept["reward_term"].values == {("format",): 0.5}
    assert kept["task_mean"].values == {("exact",): 0.25}
    assert kept["steps_total"].values == {(): 1}


def test_a_gauge_is_set_again_at_each_look_for_ray_forgets_it(kept):
    page = RayMetrics("first")
    page.publish({"reward": 1.5})
    for _ in range(3):
        look(page)
    assert (kept["reward"].sets, kept["reward"].values) == (3, {(): 1.5})


def test_what_a_step_learned_from_is_counted(kept):
    # Two groups of 3 samples of 2 tokens each, learned at version 2; that of version 1 has no signal.
    fresh = make_scored(make_group(make_prompt(), version=2, num_samples=3), [6.0, 0.0, 0.0])
    stale = make_scored(make_group(make_prompt(), version=1, num_samples=3), [1.0, 1.0, 1.0])
    page = RayMetrics("first")
    page.count((fresh, stale), PolicyVersion(2))
    names = ("groups_total", "groups_without_signal_total", "samples_total", "answer_tokens_total")
    assert [kept[name].values[()] for name in names] == [2, 1, 6, 12]
    assert kept["group_staleness_versions"].seen == [0, 1]


def test_exactly_one_phase_is_1(kept):
    page, activity = RayMetrics("first"), Activity()
    for phase in (Phase.WAITING, Phase.LEARNING):
        activity.enter(phase)
        look(page, activity)
        assert kept["phase"].values == {(other.value,): float(other is phase) for other in Phase}


def test_seconds_are_counted_once(kept):
    now = 0.0
    page, activity = RayMetrics("first"), Activity(lambda: now)
    activity.enter(Phase.WAITING)
    now = 4.0
    look(page, activity)
    look(page, activity)
    now = 6.0
    activity.enter(Phase.LEARNING)
    look(page, activity)
    assert kept["goodput_seconds_total"].values == {("idle",): 6.0}


def test_workers_are_shown_by_kind_and_state_and_the_lost_are_counted(kept):
    page, fleet = RayMetrics("first"), Fleet("reward", 2, Limits())
    fleet.tick(0.0)
    look(page, fleets=(fleet,))
    assert kept["workers"].values["reward", "starting"] == 2
    fleet.loaded("reward-0", 0, 1.0)
    fleet.died("reward-1", "it is gone", 2.0)
    look(page, fleets=(fleet,))
    states = ("starting", "serving", "dead")
    assert [kept["workers"].values["reward", state] for state in states] == [0, 1, 1]
    assert kept["workers_wanted"].values == {("reward",): 2}
    assert kept["worker_losses_total"].values == {("reward",): 1}


async def test_the_window_is_shown_against_its_capacity(kept):
    page, window = RayMetrics("first"), Window(groups_per_step=2, max_staleness=1, total_groups=9)
    tickets = [await window.admit() for _ in range(3)]
    assert tickets[1] is not None
    await window.deliver(tickets[1], make_scored(make_group(make_prompt(), version=0), [1.0, 0.0]))
    page.look(Activity(), (), window)
    shown = [kept[f"window_{name}_groups"].values[()] for name in ("held", "ready", "capacity")]
    assert shown == [3, 1, 4]
