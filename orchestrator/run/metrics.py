"""One row of metrics a step, each mean over what its comment says. JSON lines come first.

Rows have the same keys, but for three: a term of the reward is there from the step in which a rule first returned it,
what is a mean over the tokens that are learned from is left out of a step without any, and how full the reward workers
were out of one at whose end none was there.
"""

import json
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.cluster.metrics_table import REWARD_TERM as TERM
from orchestrator.loop.loop import StepTimes, staleness
from orchestrator.run.lines import Lines
from records.samples import PolicyVersion, ScoredGroup, StepReport
from reward_service.actor import ScoringLoad

DIGITS = 6


def step_row(
    report: StepReport,
    groups: tuple[ScoredGroup, ...],
    times: StepTimes,
    scoring: Sequence[ScoringLoad],
    terms: Collection[str],
    step_s: float,
    elapsed_s: float,
) -> dict[str, float]:
    """The row of one step, when its version is served.

    *terms* are those of the reward that have a column; one that a sample's score leaves out is 0 there. *step_s* is the
    time since the last step was served, *elapsed_s* since the first one began, and *scoring* the load of each reward
    worker in *step_s*.
    """
    scores = [score for group in groups for score in group.scores]
    samples = [sample for group in groups for sample in group.group.samples]
    found = [score.judgement.columns for score in scores]
    before = PolicyVersion(report.version - 1)
    ages = [staleness(group, before) for group in groups]
    answer_tokens = sum(len(sample.trace.token_ids) for sample in samples)
    return {
        "step": report.version,
        "version": report.version,
        "reward": _mean(score.total for score in scores),  # over samples, as the parts are
        **{f"{TERM}{term}": _mean(score.parts.get(term, 0.0) for score in scores) for term in sorted(terms)},
        "reward_std": _mean(float(group.rewards.std()) for group in groups),  # within a group, over groups
        **{name: _mean(columns[name] for columns in found) for name in found[0]},  # the task's, over samples
        "with_signal": _mean(group.has_signal for group in groups),  # over groups
        "cut_off": _mean(sample.trace.finish == "length" for sample in samples),  # over samples
        "staleness": _mean(ages),  # over groups, by their oldest token
        "staleness_max": float(max(ages)),
        "answer_tokens": float(answer_tokens),  # of the step
        "answer_length": answer_tokens / len(samples),  # over samples
        "tokens_per_s": answer_tokens / step_s,
        "samples_per_s": len(samples) / step_s,
        "loss": report.loss,
        "grad_norm": report.grad_norm,
        **report.stats,
        "wait_s": times.wait_s,
        "learn_s": times.learn_s,
        "publish_s": times.publish_s,
        "transfer_s": times.transfer_s,
        "pause_s": times.pause_s,  # of the worker that paused longest
        **_scoring(scoring, step_s),
        "step_s": step_s,
        "elapsed_s": elapsed_s,
    }


def _scoring(loads: Sequence[ScoringLoad], step_s: float) -> dict[str, float]:
    """Nothing is known where every reward worker was lost: that is no 0."""
    if not loads:
        return {}
    return {
        "scoring_full": max(load.full_s for load in loads) / step_s,  # of the time, in the fullest worker
        "scoring_wait_s": max(load.longest_wait_s for load in loads),  # of a sample for a place
    }


def terms_of(groups: Iterable[ScoredGroup]) -> set[str]:
    """The terms of the reward that the rule has returned for any sample."""
    return {term for group in groups for score in group.scores for term in score.parts}


def terms_in(rows: Iterable[Mapping[str, float]]) -> set[str]:
    """The terms that have a column in any of *rows*."""
    return {key.removeprefix(TERM) for row in rows for key in row if key.startswith(TERM)}


def imitation_row(report: StepReport, samples: int, step_s: float, elapsed_s: float) -> dict[str, float]:
    """The row of one supervised step; times as in `step_row`. *entropy*: the mean of -log-prob of the right tokens."""
    return {
        "step": report.version,
        "version": report.version,
        "loss": report.loss,
        "grad_norm": report.grad_norm,
        **report.stats,
        "answer_tokens": float(report.tokens),  # of the step
        "answer_length": report.tokens / samples,  # over samples
        "tokens_per_s": report.tokens / step_s,
        "samples_per_s": samples / step_s,
        "step_s": step_s,
        "elapsed_s": elapsed_s,
    }


class MetricsFile:
    """Appends rows to a JSON-lines file, each on disk before the next step begins."""

    def __init__(self, path: Path) -> None:
        self._file = Lines(path)

    def write(self, row: dict[str, float]) -> None:
        """Raises OSError, which names the file."""
        self._file.append(json.dumps({key: significant(value) for key, value in row.items()}).encode() + b"\n")

    def close(self) -> None:
        self._file.close()


def significant(value: float) -> float:
    """To six digits, but never fewer than the whole number: a learning rate of 1e-7 is as exact as a million tokens.

    >>> significant(1.23456789e-7), significant(1234567.8), significant(3)
    (1.23457e-07, 1234568.0, 3)
    """
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, max(0, DIGITS - 1 - math.floor(math.log10(abs(value)))))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace the file at once."""
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(part, path)


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows that a MetricsFile wrote, one a step; a last line that a power cut has left without its end is none."""
    *lines, _ = path.read_text().split("\n")
    return [json.loads(line) for line in lines]


def _mean(values: Iterable[float]) -> float:
    return float(np.mean([float(value) for value in values]))
