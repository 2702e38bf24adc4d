"""The 11 metrics of TRANCE's family, pure: judge one reply, then summarise many.

They look at states: the predicted triplets are applied to the initial state in the order written. A malformed reply
counts as predicting nothing. All accuracies are shares in [0, 1]; a mean over no samples is None, never 0.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tasks.tvr.language.answer import Answer, Malformed
from tasks.tvr.language.gold import Gold
from tasks.tvr.language.scene import VIEWS, Transformation, count_final_differences

METRICS = (
    "Basic/ObjAcc",
    "Basic/AttrAcc",
    "Basic/ValAcc",
    "Basic/Acc",
    "Event/Diff",
    "Event/NDiff",
    "Event/Acc",
    "View/Diff",
    "View/NDiff",
    "View/Acc",
    "TAcc",
)
OBJECT_BANDS = {"1-3": (1, 3), "4-6": (4, 6), "7-8": (7, 8), "9-10": (9, 10)}


class Judgement(NamedTuple):
    """One reply against the truth.

    *acc*: the state reached is exactly the true final one, by valid triplets only. *diff*: (object, attribute) cells in
    which the two differ, plus 1 for each triplet that is impossible in the scene. *ndiff*: *diff* by the number of true
    changes (by 1 if there are none). *object_acc*, *attribute_acc*, *value_acc*: something was predicted and every
    triplet has the true index / attribute / attribute and value; None unless exactly one change is true. *num_objects*
    counts those in sight at first. *num_tokens* is None where nobody counted. A tuple, because a million may be made.
    """

    setting: str
    view: str
    num_objects: int
    num_changes: int
    num_tokens: int | None
    well_formed: bool
    acc: bool
    diff: int
    ndiff: float
    object_acc: bool | None
    attribute_acc: bool | None
    value_acc: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsReport:
    """Means over *num_samples* judgements.

    *metrics* has exactly the 11 keys of `METRICS`. *by_view*, *by_objects* and *by_changes* split TAcc by the final
    view, by the number of objects and by the number of true changes; *well_formed* is a share of replies and
    *mean_tokens* their mean length.
    """

    num_samples: int
    metrics: dict[str, float | None]
    by_view: dict[str, float | None]
    by_objects: dict[str, float | None]
    by_changes: dict[str, float | None]
    well_formed: float | None
    mean_tokens: float | None


def judge(answer: Answer | Malformed, gold: Gold, *, num_tokens: int | None) -> Judgement:
    """Judge one parsed reply; *num_tokens* is its length.

    Raises ValueError when *gold* is a basic sample without exactly one change.
    """
    gold.check_count()
    truth = gold.transformations
    predicted = answer.triplets if isinstance(answer, Answer) else ()
    valid = [triplet for triplet in predicted if triplet.is_valid_in(gold.scene)]
    num_invalid = len(predicted) - len(valid)
    diff = num_invalid + count_final_differences(gold.scene, valid, truth)
    object_acc, attribute_acc, value_acc = _compare(predicted, truth[0]) if len(truth) == 1 else (None, None, None)
    return Judgement(
        setting=gold.setting,
        view=gold.view,
        num_objects=sum(item.in_sight for item in gold.scene),
        num_changes=len(truth),
        num_tokens=num_tokens,
        well_formed=isinstance(answer, Answer),
        acc=diff == 0,
        diff=diff,
        ndiff=diff / max(1, len(truth)),
        object_acc=object_acc,
        attribute_acc=attribute_acc,
        value_acc=value_acc,
    )


def summarise(judgements: Sequence[Judgement]) -> MetricsReport:
    """Mean of every metric over the samples it is defined on; None where there are none."""
    basic = [item for item in judgements if item.setting == "basic"]
    metrics = {
        "Basic/ObjAcc": _mean(item.object_acc for item in basic),
        "Basic/AttrAcc": _mean(item.attribute_acc for item in basic),
        "Basic/ValAcc": _mean(item.value_acc for item in basic),
        "Basic/Acc": _accuracy(basic),
    }
    for name, setting in (("Event", "event"), ("View", "view")):
        items = [item for item in judgements if item.setting == setting]
        metrics[f"{name}/Diff"] = _mean(item.diff for item in items)
        metrics[f"{name}/NDiff"] = _mean(item.ndiff for item in items)
        metrics[f"{name}/Acc"] = _accuracy(items)
    metrics["TAcc"] = _accuracy(judgements)
    return MetricsReport(
        num_samples=len(judgements),
        metrics=metrics,
        by_view={view: _accuracy(item for item in judgements if item.view == view) for view in VIEWS},
        by_objects={
            band: _accuracy(item for item in judgements if low <= item.num_objects <= high)
            for band, (low, high) in OBJECT_BANDS.items()
        },
        by_changes={
            str(count): _accuracy(item for item in judgements if item.num_changes == count)
            for count in sorted({item.num_changes for item in judgements})
        },
        well_formed=_mean(item.well_formed for item in judgements),
        mean_tokens=_mean(item.num_tokens for item in judgements),
    )


def table_rows(reports: Sequence[MetricsReport]) -> list[tuple[str, list[float | None]]]:
    """Rows (name, one value a report) that put *reports* side by side: the 11 metrics first, then the breakdowns."""
    changes = sorted({count for report in reports for count in report.by_changes}, key=int)
    rows = [(name, [report.metrics[name] for report in reports]) for name in METRICS]
    rows += [(f"TAcc, view {view}", [report.by_view[view] for report in reports]) for view in VIEWS]
    rows += [(f"TAcc, {band} objects", [report.by_objects[band] for report in reports]) for band in OBJECT_BANDS]
    rows += [(f"TAcc, changes: {count}", [report.by_changes.get(count) for report in reports]) for count in changes]
    rows.append(("well-formed replies", [report.well_formed for report in reports]))
    rows.append(("reply length, tokens", [report.mean_tokens for report in reports]))
    rows.append(("samples", [float(report.num_samples) for report in reports]))
    return rows


def _compare(predicted: Sequence[Transformation], true: Transformation) -> tuple[bool, bool, bool]:
    """Whether something was predicted, and every triplet has the true index / attribute / attribute and value."""
    if not predicted:
        return False, False, False
    return (
        all(triplet.index == true.index for triplet in predicted),
        all(triplet.attribute == true.attribute for triplet in predicted),
        all(triplet[1:] == true[1:] for triplet in predicted),
    )


def _accuracy(judgements: Iterable[Judgement]) -> float | None:
    return _mean(item.acc for item in judgements)


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = [float(value) for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None
