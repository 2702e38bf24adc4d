"""The metrics page of Ray: what `metrics_table.py` lists, on the metrics port of the driver's node."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from orchestrator.cluster import metrics_table as table
from orchestrator.cluster.metrics_table import METRICS, RUN, Metric
from orchestrator.loop.activity import Activity, Phase
from orchestrator.loop.loop import staleness
from orchestrator.loop.window import Window
from orchestrator.supervision.fleet import Fleet, State
from records.samples import PolicyVersion, ScoredGroup

GAUGES = {metric.column: metric for metric in table.COLUMNS}


class RayMetrics:
    """The metrics of one *run*. What is counted is counted since this object was made."""

    def __init__(self, run: str) -> None:
        self._made = {metric.name: _make(metric) for metric in METRICS}
        for made in self._made.values():
            made.set_default_tags({RUN: run})
        self._shown: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._counted: dict[tuple[str, ...], float] = {}

    def publish(self, row: Mapping[str, float]) -> None:
        """The *row* of a step. A column that the table does not list is the task's."""
        for column, value in row.items():
            if column in table.ELSEWHERE:
                continue
            if column in GAUGES:
                self._set(GAUGES[column], value)
            elif column.startswith(table.REWARD_TERM):
                self._set(table.TERM, value, term=column.removeprefix(table.REWARD_TERM))
            else:
                self._set(table.TASK, value, column=column)
        self._set(table.LAST_STEP, time.time())
        self._add(table.STEPS, 1)

    def count(self, groups: Sequence[ScoredGroup], before: PolicyVersion) -> None:
        """What a step learned from, made at version *before*."""
        traces = [sample.trace for group in groups for sample in group.group.samples]
        self._add(table.GROUPS, len(groups))
        self._add(table.NO_SIGNAL, sum(not group.has_signal for group in groups))
        self._add(table.SAMPLES, len(traces))
        self._add(table.TOKENS, sum(len(trace.token_ids) for trace in traces))
        for group in groups:
            self._made[table.GROUP_STALENESS.name].observe(staleness(group, before))

    def look(self, activity: Activity, fleets: Iterable[Fleet], window: Window | None) -> None:
        """How the run stands; called each second. Without a *window* nothing is sampled to learn from."""
        for phase in Phase:
            self._set(table.PHASE, float(phase is activity.phase), phase=phase.value)
        for bucket, seconds in activity.seconds().items():
            self._raise(table.GOODPUT, seconds, bucket=bucket.value)
        self._raise(table.OVERLAP, activity.overlap_s())
        for fleet in fleets:
            self._set(table.WANTED, fleet.target, kind=fleet.kind)
            self._raise(table.LOSSES, fleet.lost, kind=fleet.kind)
            for state in State:
                if state is not State.GONE:
                    self._set(table.WORKERS, len(fleet.of(state)), kind=fleet.kind, state=state.value)
        if window is not None:
            self._set(table.HELD, window.num_held)
            self._set(table.READY, window.num_ready)
            self._set(table.CAPACITY, window.capacity)
        for (name, labels), value in self._shown.items():  # Ray forgets a gauge that is not set again and again
            self._made[name].set(value, dict(labels))

    def _set(self, metric: Metric, value: float, **labels: str) -> None:
        self._shown[metric.name, tuple(labels.items())] = value

    def _raise(self, metric: Metric, total: float, **labels: str) -> None:
        """Count what *total* has more than when it was last told."""
        key = (metric.name, *labels.values())
        self._add(metric, total - self._counted.get(key, 0.0), **labels)
        self._counted[key] = total

    def _add(self, metric: Metric, more: float, **labels: str) -> None:
        if more > 0:  # Ray refuses to add nothing
            self._made[metric.name].inc(more, labels)


def _make(metric: Metric) -> Any:
    labels = (*metric.labels, RUN)
    if metric.kind == "histogram":
        return Histogram(metric.name, metric.description, list(metric.boundaries), labels)
    return {"gauge": Gauge, "counter": Counter}[metric.kind](metric.name, metric.description, labels)
