"""The numbers behind the page's learning charts: columns of a run's rows, its evaluations, the age of its tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from orchestrator.report.behaviour import Bin
from orchestrator.report.run_data import CHANGED, SAME, VIEWS, Row, RunData

MOST_POINTS = 600
TERM = "reward/"
COLUMNS = (
    *("reward", "reward_std", "answer_length", "entropy", "cut_off", "with_signal", "sampler_kl", "max_abs_log_ratio"),
    *("staleness", "staleness_max", "wait_s", "learn_s", "publish_s", "pause_s", "step_s", "tokens_per_s", "loss"),
)


def series(run: RunData, bins: list[Bin]) -> dict[str, Any]:
    """For the page; *bins* are of the run's behaviour."""
    terms = sorted({key for row in run.rows for key in row if key.startswith(TERM)})
    shares = run.task.shares if run.task is not None else ()
    return {
        "rows": averaged(run.rows, [*COLUMNS, *terms, *shares]),
        "terms": [term.removeprefix(TERM) for term in terms],
        "shares": list(shares),
        "max_staleness": run.max_staleness,
        "headline": run.task.headline if run.task is not None else None,
        "held_out": held_out(run),
        "ages": token_ages(run),
        "behaviour": [it.to_json() for it in bins],
    }


def averaged(rows: Sequence[Row], columns: Sequence[str], most: int = MOST_POINTS) -> dict[str, list[float | None]]:
    """At most *most* points, each the mean of so many steps; None where no row of them has the column."""
    size = max(1, -(-len(rows) // most))
    blocks = [rows[start : start + size] for start in range(0, len(rows), size)]
    found = {name: [_mean(block, name) for block in blocks] for name in ("step", *columns)}
    return {name: values for name, values in found.items() if any(value is not None for value in values)}


def _mean(block: Sequence[Row], name: str) -> float | None:
    values = [row[name] for row in block if name in row and np.isfinite(row[name])]
    return float(f"{sum(values) / len(values):.6g}") if values else None


def held_out(run: RunData) -> list[dict[str, Any]]:
    """The task's headline in each evaluation, by the middle of the versions that answered; by view if it is known.

    Of the changed view it is the mean of its two cameras.
    """
    if run.task is None or run.task.headline is None:
        return []
    found = []
    for name, evaluation in run.evaluations.items():
        if evaluation["metrics"].get(run.task.headline) is None:
            continue
        by_view: dict[str, list[float]] = {SAME: [], CHANGED: []}
        for camera, share in evaluation.get("by_view", {}).items():
            if share is not None and camera in VIEWS:
                by_view[VIEWS[camera]].append(share)
        found.append(
            {
                "name": name,
                "version": sum(evaluation["versions"]) / 2,
                "all": evaluation["metrics"][run.task.headline],
                **{view: sum(shares) / len(shares) if shares else None for view, shares in by_view.items()},
            }
        )
    return sorted(found, key=lambda it: it["version"])


def token_ages(run: RunData) -> dict[str, Any]:
    """Of the tokens that each step learned from, the share that is so many versions old; and how many versions an
    answer has on average.
    """
    versions = run.traces["versions"].combine_chunks()
    if not len(versions):
        return {"steps": [], "shares": [], "a_sample": []}
    flat, lengths = versions.flatten().to_numpy(), np.diff(versions.offsets.to_numpy())
    steps = run.traces["step"].to_numpy()
    ages = np.repeat(steps, lengths) - 1 - flat
    of_token = np.repeat(steps, lengths)
    changed = np.diff(flat, prepend=flat[:1]) != 0
    changed[np.cumsum(lengths)[:-1]] = False  # from one answer to the next
    known = np.unique(steps)
    counts = np.zeros((int(ages.max()) + 1, len(known)))
    np.add.at(counts, (ages, np.searchsorted(known, of_token)), 1)
    spans = np.bincount(np.searchsorted(known, of_token), changed, len(known))
    samples = np.bincount(np.searchsorted(known, steps), minlength=len(known))
    return {
        "steps": known.tolist(),
        "shares": (counts / counts.sum(0)).round(4).tolist(),
        "a_sample": (1 + spans / samples).round(3).tolist(),
    }
