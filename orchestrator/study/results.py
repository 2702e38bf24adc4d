"""A study's numbers, from what its cells left behind. Pure but for reading files; `study.json` is a `StudyResult`.

Shares are in [0, 1] and times in seconds; a mean over nothing is None. Samples are answers learned from.
"""

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from orchestrator.run.directory import RunDirectory
from orchestrator.run.metrics import read_rows
from orchestrator.study.config import ArmConfig
from records.samples import Prompt
from tasks.tvr.language.metrics import summarise
from tasks.tvr.language.scene import VIEWS
from tasks.tvr.task import TASK, Read

SAME_VIEW, CHANGED_VIEW = "same view", "changed views"
HALF_GAIN = "samples until half of the gain"
Numbers = dict[str, float | None]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ValidationPoint(Record):
    """One evaluation on the validation pairs, greedy. *version* is the middle of those that answered."""

    version: float
    samples: float
    seconds: float
    tacc: float
    careful: float | None
    triplets: float | None
    length: float | None


class TrainingPoint(Record):
    """One step. Only sampled answers have a reward, and behaviour; *seconds* count no start and no stop."""

    samples: float
    seconds: float
    length: float
    reward: float | None
    careful: float | None
    triplets: float | None
    exact: float | None


class Seconds(Record):
    """Wall time: *training* of the steps; *set_up* of all else that the training command does (start of the workers,
    evaluation before and after, steps done twice); *test* of asking the test pairs."""

    training: float
    set_up: float
    test: float


class CellResult(Record):
    """One arm with one seed, or the base, which has neither seed nor training. *numbers* are those of the table."""

    seed: int | None
    date: str
    commit: str | None
    numbers: Numbers
    seconds: Seconds
    validation: tuple[ValidationPoint, ...] = ()
    training: tuple[TrainingPoint, ...] = ()


class MeanError(Record):
    """Over *count* seeds; the standard error of one is None."""

    mean: float
    error: float | None
    count: int


class ArmResult(Record):
    """*cells* are those that are complete, in the order of the seeds; *summary* has each of their numbers by name."""

    arm: ArmConfig
    cells: tuple[CellResult, ...]
    summary: dict[str, MeanError]


class StudyResult(Record):
    """The whole study, as far as it is: *cells_done* of *cells_total*, the base among them."""

    command: str
    date: str
    commits: tuple[str, ...]
    cells_done: int
    cells_total: int
    study: dict[str, Any]
    base: CellResult | None
    arms: tuple[ArmResult, ...]


def read_replies(path: Path, prompts: Sequence[Prompt]) -> list[Read]:
    """The replies in *path*, one to each of *prompts*, judged. Raises ValueError if one is missing."""
    lines = map(json.loads, path.read_text().splitlines())
    found = {line["id"]: line for line in lines}
    if missing := [prompt.id for prompt in prompts if prompt.id not in found]:
        raise ValueError(f"{path}: has no reply to {len(missing)} of {len(prompts)} pairs, {missing[0]} the first")
    return [judge_reply(prompt, found[prompt.id]["reply"], found[prompt.id]["num_tokens"]) for prompt in prompts]


def judge_reply(prompt: Prompt, reply: str, num_tokens: int) -> Read:
    """With the length of the reply in its judgement."""
    read = TASK.judge(reply, prompt.gold, {})
    return read._replace(judgement=read.judgement._replace(num_tokens=num_tokens))


def reply_numbers(replies: Sequence[Read]) -> Numbers:
    """The 11 metrics, TAcc by view, objects and changes, and behaviour, over the *replies* that each is about."""
    judged = [reply.judgement for reply in replies]
    report = summarise(judged)
    same, changed = _by_camera(replies)
    objects = sorted({item.num_objects for item in judged})
    return {
        **report.metrics,
        f"TAcc, {SAME_VIEW}": _mean(reply.judgement.acc for reply in same),
        f"TAcc, {CHANGED_VIEW}": _mean(reply.judgement.acc for reply in changed),
        **{f"TAcc, view {view}": report.by_view[view] for view in VIEWS},
        **{
            f"TAcc, {count} objects": _mean(item.acc for item in judged if item.num_objects == count)
            for count in objects
        },
        **{f"TAcc, changes: {count}": share for count, share in report.by_changes.items()},
        "well-formed replies": report.well_formed,
        "careful replies": _mean(reply.careful for reply in replies),
        f"careful replies, {SAME_VIEW}": _mean(reply.careful for reply in same),
        f"careful replies, {CHANGED_VIEW}": _mean(reply.careful for reply in changed),
        "triplets a reply": _mean(reply.triplets for reply in replies),
        "reply length, tokens": report.mean_tokens,
    }


def training_curve(rows: Sequence[dict[str, float]], answers_per_step: int) -> tuple[TrainingPoint, ...]:
    """From the rows of a `metrics.jsonl`, whose times add up over the parts of a run that was stopped."""
    seconds = np.cumsum([row["step_s"] for row in rows])
    return tuple(
        TrainingPoint(
            samples=row["step"] * answers_per_step,
            seconds=float(at),
            length=row["answer_length"],
            reward=row.get("reward"),
            careful=row.get("careful"),
            triplets=row.get("triplets"),
            exact=row.get("exact"),
        )
        for row, at in zip(rows, seconds, strict=True)
    )


def validation_curve(
    evaluations: dict[str, Any], training: Sequence[TrainingPoint], answers_per_step: int
) -> tuple[ValidationPoint, ...]:
    """From an `evaluation.json`: before, beside and after the steps. Of two at the same version the later one counts.

    An evaluation beside the steps is answered by several versions in turn and stands at the middle of them.
    """
    samples = [0.0, *(point.samples for point in training)]
    seconds = [0.0, *(point.seconds for point in training)]
    points = {}
    for found in evaluations.values():
        version = sum(found["versions"]) / 2
        points[version] = ValidationPoint(
            version=version,
            samples=version * answers_per_step,
            seconds=float(np.interp(version * answers_per_step, samples, seconds)),
            tacc=found["metrics"]["TAcc"],
            careful=found.get("careful"),
            triplets=found.get("triplets"),
            length=found["mean_tokens"],
        )
    return tuple(points[version] for version in sorted(points))


def samples_until_half_gain(curve: Sequence[ValidationPoint]) -> float | None:
    """Samples at which TAcc first is halfway from that of the first point to that of the last, along straight lines
    between the points; None without a gain."""
    if not curve or curve[-1].tacc <= curve[0].tacc:
        return None
    half = (curve[0].tacc + curve[-1].tacc) / 2
    for before, after in pairwise(curve):
        if after.tacc >= half:
            share = (half - before.tacc) / (after.tacc - before.tacc)
            return before.samples + share * (after.samples - before.samples)
    raise AssertionError("the last point is above half")


def read_cell(
    run: Path, replies: Path, prompts: Sequence[Prompt], answers_per_step: int, wall: dict[str, float], **made: Any
) -> CellResult:
    """A complete cell from its run directory, or the base, which has none. *wall*: seconds of `train` and `test`."""
    numbers = reply_numbers(read_replies(replies, prompts))
    directory = RunDirectory(run)
    training = training_curve(read_rows(directory.metrics), answers_per_step) if directory.metrics.exists() else ()
    validation = validation_curve(directory.evaluations(), training, answers_per_step)
    training_s = training[-1].seconds if training else 0.0
    seconds = Seconds(training=training_s, set_up=wall.get("train", training_s) - training_s, test=wall["test"])
    numbers[HALF_GAIN] = samples_until_half_gain(validation)
    return CellResult(numbers=numbers, seconds=seconds, validation=validation, training=training, **made)


def summarise_cells(cells: Sequence[CellResult]) -> dict[str, MeanError]:
    """Every number and time over the seeds that have it."""
    columns: dict[str, list[float]] = {}
    for cell in cells:
        for name, value in [*cell.numbers.items(), *((f"seconds, {k}", v) for k, v in cell.seconds)]:
            columns.setdefault(name, [])
            if value is not None:
                columns[name].append(value)
    return {name: mean_and_error(values) for name, values in columns.items() if values}


def mean_and_error(values: Sequence[float]) -> MeanError:
    """Mean, and the standard error of it: the standard deviation (of the sample, n - 1) by the root of n."""
    count = len(values)
    mean = sum(values) / count
    spread = sum((value - mean) ** 2 for value in values)
    error = sqrt(spread / (count - 1) / count) if count > 1 else None
    return MeanError(mean=mean, error=error, count=count)


def _by_camera(replies: Sequence[Read]) -> tuple[list[Read], list[Read]]:
    """Those whose final picture is from the camera of the initial one, and the others."""
    same = [reply for reply in replies if reply.judgement.view == "center"]
    return same, [reply for reply in replies if reply.judgement.view != "center"]


def _mean(values: Iterable[float]) -> float | None:
    numbers = [float(value) for value in values]
    return sum(numbers) / len(numbers) if numbers else None
