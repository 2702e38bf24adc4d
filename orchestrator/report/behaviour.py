"""How replies come to their answers, by the version that sampled them and by view. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from orchestrator.report.run_data import VIEWS, RunData, kind_of

ALL = "all"
LENGTH = "reply length, tokens"
MOST_BINS = 20
REPLY_COLUMNS = ("prompt_id", "reply", "versions")
"""Of the traces: what is looked at."""


class Look(NamedTuple):
    """One reply: the *version* of its oldest token, the *view* of its prompt, and what its task finds, by name."""

    version: int
    view: str
    values: Mapping[str, float]


class Bin(NamedTuple):
    """Replies of the versions *first* to *last*: how many, and the mean of each value over them, by view and in all."""

    first: int
    last: int
    samples: dict[str, int]
    means: dict[str, dict[str, float]]

    def to_json(self) -> dict[str, Any]:
        return {"versions": [self.first, self.last], "samples": self.samples, **self.means}


def look(run: RunData) -> list[Look]:
    """At every reply in the traces of *run* whose prompt is still there: only beside the truth can it be read."""
    task = run.task
    if task is None:
        return []
    looks = []
    texts = (run.traces[name].to_pylist() for name in ("prompt_id", "reply"))
    for prompt_id, reply, length, oldest in zip(*texts, *_tokens(run.traces["versions"]), strict=True):
        if (prompt := run.prompts.get(prompt_id)) is None:
            continue
        kind = kind_of(task, prompt)
        values = {**task.behaviour(reply, prompt.gold), LENGTH: float(length)}
        looks.append(Look(oldest, VIEWS.get(kind, kind), values))
    return looks


def _tokens(versions: pa.ChunkedArray) -> tuple[list[int], list[int]]:
    """Of each answer how many, and the version of the oldest."""
    lists = versions.combine_chunks()
    if not len(lists):
        return [], []
    starts = lists.offsets.to_numpy()
    oldest = np.minimum.reduceat(lists.flatten().to_numpy(), starts[:-1] - starts[0])
    return np.diff(starts).tolist(), oldest.tolist()


def behaviour(looks: Sequence[Look], most_bins: int = MOST_BINS) -> list[Bin]:
    """At most *most_bins*, each of as many versions but perhaps the last; versions without a reply are left out."""
    if not looks:
        return []
    versions = [it.version for it in looks]
    first, width = min(versions), -(-(max(versions) - min(versions) + 1) // most_bins)
    binned: dict[int, list[Look]] = {}
    for it in looks:
        binned.setdefault((it.version - first) // width, []).append(it)
    return [_bin(binned[place]) for place in sorted(binned)]


def _bin(looks: Sequence[Look]) -> Bin:
    versions = [it.version for it in looks]
    views = sorted({it.view for it in looks} - {""}, reverse=True)  # the same view first
    by_view = {ALL: looks, **{view: [it for it in looks if it.view == view] for view in views}}
    names = looks[0].values
    return Bin(
        first=min(versions),
        last=max(versions),
        samples={view: len(those) for view, those in by_view.items()},
        means={
            name: {view: sum(it.values[name] for it in those) / len(those) for view, those in by_view.items()}
            for name in names
        },
    )
