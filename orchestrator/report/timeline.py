"""Who worked when, and who waited for whom: lanes, the window, events and goodput over a run's time. Pure.

Time is that of the run: seconds while a driver was there, so that a night between two drivers takes no room.
"""

import bisect
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from orchestrator.report.run_data import Event, RunData

BINS = 480
"""Of a lane: what can be told apart on a screen."""
MOST_EVENTS = 2000
GOODPUT = ("productive_s", "overhead_s", "idle_s", "wasted_s")
SHOWN = {
    "served": ("publish", "version {version} served"),
    "checkpoint begun": ("checkpoint", "version {version}"),
    "scaled": ("scale", "{kind}: {target} ({why})"),
    "ended": ("lost", "{worker}: {why}"),
    "leaving": ("scale", "{worker} leaves"),
    "starting": ("start", "{worker}"),
    "asked again": ("asked again", "{prompt}, of {worker}"),
    "made again": ("made again", "step {step}"),
    "began": ("driver", "a driver goes on behind version {version}"),
    "waiting": ("waits for room", "{worker}: {why}"),
    "traces lost": ("traces lost", "step {step}: {why}"),
}
"""Events of the journal that the page shows: in which line, and with which text."""
LINES = tuple(dict.fromkeys(line for line, _ in SHOWN.values()))


class RunTime:
    """From seconds since 1970 to seconds of the run, by the times of its *events*."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._at: list[float] = []
        self._run: list[float] = []
        length = 0.0
        for driver in drivers(events):
            times = [event["at"] for event in driver]
            start, end = max(min(times), *self._at[-1:], min(times)), max(times)
            self._at += [start, max(start, end)]
            self._run += [length, length := length + max(0.0, end - start)]
        self.length = length

    def __call__(self, at: Any) -> np.ndarray:
        """Of a time or an array of them; one outside of all drivers is at the nearest end."""
        return np.interp(np.asarray(at, np.float64), self._at, self._run)


def drivers(events: Sequence[Event]) -> list[list[Event]]:
    """The events of each driver, the first being `began`."""
    found: list[list[Event]] = []
    for event in events:
        if event["event"] == "began" or not found:
            found.append([])
        found[-1].append(event)
    return found


def timeline(run: RunData) -> dict[str, Any] | None:
    """For the page; None of a run without a journal."""
    if not run.events:
        return None
    time = RunTime(run.events)
    edges = np.linspace(0.0, max(time.length, 1e-3), BINS + 1)
    return {
        "from": _first_work(run, time),
        "length": round(time.length, 3),
        "lanes": [*rollout_lanes(run, time, edges), *learner_lanes(run, time, edges)],
        "window": window(run, time, edges),
        "events": shown_events(run.events, time),
        "lines": list(LINES),
        "goodput": goodput(run, time),
    }


def _first_work(run: RunData, time: RunTime) -> float:
    """A little before the first group: the start of the workers would fill half of a short run's chart."""
    asked = next((float(time(event["at"])) for event in run.events if event["event"] == "admitted"), 0.0)
    return round(max(0.0, asked - 0.03 * (time.length - asked)), 3)


def mean_level(starts: np.ndarray, ends: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """How many of the spans go on, on average, between each two of *edges*.

    >>> mean_level(np.array([0.0, 1.0]), np.array([2.0, 2.0]), np.array([0.0, 1.0, 2.0, 4.0])).tolist()
    [1.0, 2.0, 0.0]
    """
    passed = sum(sign * _seconds_since(times, edges) for sign, times in ((1, starts), (-1, ends)))
    return np.diff(passed) / np.diff(edges)


def _seconds_since(times: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """At each of *edges*, the sum over the *times* before it of how long they are ago."""
    times = np.sort(times)
    before = np.searchsorted(times, edges)
    return before * edges - np.concatenate([[0.0], np.cumsum(times)])[before]


def rollout_lanes(run: RunData, time: RunTime, edges: np.ndarray) -> list[dict[str, Any]]:
    """Of each rollout worker, prompts that it was asked and has not answered in full."""
    traces = run.traces.select(["worker", "ticket", "asked_at", "ended_at"]).drop_null()
    groups = traces.group_by(["worker", "ticket"]).aggregate([("asked_at", "min"), ("ended_at", "max")])
    lanes = []
    for worker in sorted(pc.unique(groups["worker"]).to_pylist(), key=lambda name: (len(name), name)):
        mine = groups.filter(pc.equal(groups["worker"], worker))
        starts, ends = (time(seconds(mine[name])) for name in ("asked_at_min", "ended_at_max"))
        lanes.append(_lane(worker, "prompts at once", mean_level(starts, ends, edges)))
    return lanes


def seconds(moments: Any) -> np.ndarray:
    """Since 1970, of a column of moments."""
    return pc.cast(moments, "int64").to_numpy() / 1e6


def learner_lanes(run: RunData, time: RunTime, edges: np.ndarray) -> list[dict[str, Any]]:
    """When the learner learned, and when a version went to the rollout workers."""
    rows = {int(row["step"]): row for row in run.rows}
    learned = [
        (event["at"] - rows[event["step"]]["learn_s"], event["at"])
        for event in run.events
        if event["event"] == "trained" and "learn_s" in rows.get(event["step"], {})
    ]
    sent: dict[int, float] = {}
    published = []
    for event in run.events:
        if event["event"] == "sent":
            sent[event["version"]] = event["at"]
        elif event["event"] == "served" and event["version"] in sent:
            published.append((sent.pop(event["version"]), event["at"]))
    lanes = (("learner", "learning, of the time", learned), ("publish", "going on, of the time", published))
    return [_lane(name, unit, mean_level(*_spans(spans, time), edges)) for name, unit, spans in lanes if spans]


def _spans(spans: Iterable[tuple[float, float]], time: RunTime) -> tuple[np.ndarray, np.ndarray]:
    starts, ends = zip(*spans, strict=True)
    return time(starts), time(ends)


def _lane(name: str, unit: str, level: np.ndarray) -> dict[str, Any]:
    return {"name": name, "unit": unit, "level": np.clip(level, 0.0, None).round(2).tolist()}


def window(run: RunData, time: RunTime, edges: np.ndarray) -> dict[str, Any]:
    """Groups that the window holds, and of these the ones that no step has taken, at the end of each bin.

    *ready* are those whose last answer is scored: only known where all groups are in the traces.
    """
    size = run.groups_per_step
    held, waiting = [(0.0, 0)], [(0.0, 0)]
    for event in run.events:
        at = float(time(event["at"]))
        match event["event"]:
            case "began":  # what an earlier driver held is asked for again
                held.append((at, 0))
                waiting.append((at, 0))
            case "admitted":
                held.append((at, held[-1][1] + 1))
                waiting.append((at, waiting[-1][1] + 1))
            case "taken":
                waiting.append((at, waiting[-1][1] - size))
            case "served":
                held.append((at, held[-1][1] - size))
    ready = _ready(run, time)
    return {
        "cap": (run.max_staleness + 1) * size,
        "step": size,
        "held": _sampled(held, edges),
        "waiting": _sampled(waiting, edges),
        "ready": None if ready is None else _sampled(ready, edges),
    }


def _ready(run: RunData, time: RunTime) -> list[tuple[float, int]] | None:
    steps = [event for event in run.events if event["event"] == "taken"]
    groups = run.traces.select(["ticket", "scored_at"]).drop_null().group_by("ticket").aggregate([("scored_at", "max")])
    if not steps or len(groups) != run.groups_per_step * len(steps):
        return None
    changes = [(at, 1) for at in time(seconds(groups["scored_at_max"])).tolist()]
    changes += [(float(time(event["at"])), -run.groups_per_step) for event in steps]
    level, found = 0, [(0.0, 0)]
    for at, change in sorted(changes):
        level += change
        found.append((at, level))
    return found


def _sampled(points: Sequence[tuple[float, int]], edges: np.ndarray) -> list[int]:
    """The last value before the end of each bin; between a step that took groups and its line, it may be below 0."""
    times = [at for at, _ in points]
    return [max(0, points[bisect.bisect_right(times, edge) - 1][1]) for edge in edges[1:].tolist()]


def shown_events(events: Sequence[Event], time: RunTime) -> list[list[Any]]:
    """Time, line and text of each, all but the newest MOST_EVENTS left out."""
    shown = [event for event in events if event["event"] in SHOWN][-MOST_EVENTS:]
    found = []
    for event in shown:
        line, text = SHOWN[event["event"]]
        found.append([round(float(time(event["at"])), 3), LINES.index(line), text.format_map(_Facts(event))])
    return found


class _Facts(dict[str, Any]):
    """Those of an event; one that it lacks is said to be unknown."""

    def __missing__(self, key: str) -> str:
        return "?"


def goodput(run: RunData, time: RunTime) -> dict[str, Any] | None:
    """Shares of each step's time and of all, in percent; None where the rows do not have them."""
    served = {event["version"]: event["at"] for event in run.events if event["event"] == "served"}
    rows = [row for row in run.rows if all(key in row for key in GOODPUT) and int(row["step"]) in served]
    spent = np.array([[row[key] for key in GOODPUT] for row in rows])
    if not len(spent) or not spent.sum() > 0:
        return None
    shares = 100 * spent / np.maximum(spent.sum(1, keepdims=True), 1e-9)
    total = 100 * spent.sum(0) / spent.sum()
    return {
        "names": [key.removesuffix("_s") for key in GOODPUT],
        "at": time([served[int(row["step"])] for row in rows]).round(3).tolist(),
        "steps": [int(row["step"]) for row in rows],
        "shares": shares.round(2).T.tolist(),
        "total": total.round(1).tolist(),
    }
