"""The 11 metrics, against numbers worked out by hand.

The scene is `red cube large metal`, `blue sphere small glass`, `cyan cylinder medium rubber`.
"""

import pytest

from tasks.tvr.language.answer import Answer, Malformed, parse
from tasks.tvr.language.gold import Gold
from tasks.tvr.language.metrics import METRICS, Judgement, judge, summarise, table_rows
from tasks.tvr.language.scene import SceneObject

SCENE = (
    SceneObject(color="red", shape="cube", size="large", material="metal"),
    SceneObject(color="blue", shape="sphere", size="small", material="glass"),
    SceneObject(color="cyan", shape="cylinder", size="medium", material="rubber"),
)


def answer(triplets: str) -> Answer:
    parsed = parse(f"<think></think><answer>{triplets}</answer>")
    assert isinstance(parsed, Answer)
    return parsed


def gold(triplets: str, setting: str = "event", view: str = "center") -> Gold:
    return Gold(setting=setting, scene=SCENE, transformations=answer(triplets).triplets, view=view)


def judged(
    predicted: str | Malformed, true: str, setting: str = "event", view: str = "center", num_tokens: int = 10
) -> Judgement:
    reply = predicted if isinstance(predicted, Malformed) else answer(predicted)
    return judge(reply, gold(true, setting, view), num_tokens=num_tokens)


@pytest.mark.parametrize(
    ("predicted", "diff"),
    [
        ("0.color.gray, 1.size.large", 0),
        ("1.size.large, 0.color.gray", 0),  # the order does not matter where the cells differ
        ("0.color.green, 0.color.gray, 1.size.large", 0),  # a later one overrides
        ("0.color.gray, 1.size.large, 2.color.cyan", 0),  # cyan already: changes nothing
        ("0.color.gray", 1),  # size of 1 is missing
        ("", 2),  # both are missing
        ("0.color.green, 1.size.large", 1),  # the wrong value leaves one cell wrong
        ("0.color.gray, 1.size.large, 2.color.red", 1),  # one cell too many
        ("2.color.red, 2.shape.cube", 4),  # two missing, two too many
        ("0.color.gray, 1.size.large, 3.color.red", 1),  # no object 3: invalid, 1
        ("0.color.gray, 1.size.red", 2),  # invalid 1, and the size of 1 is missing 1
        ("9.color.red, 9.color.red", 4),  # invalid twice, both missing
    ],
)
def test_diff_counts_wrong_cells_and_invalid_triplets(predicted, diff):
    judgement = judged(predicted, "0.color.gray, 1.size.large")
    assert judgement.diff == diff
    assert judgement.ndiff == diff / 2  # two true changes
    assert judgement.acc == (diff == 0)


def test_a_malformed_reply_counts_as_predicting_nothing():
    judgement = judged(Malformed(reason="no tags"), "0.color.gray, 1.size.large")
    assert (judgement.diff, judgement.acc, judgement.well_formed) == (2, False, False)


@pytest.mark.parametrize(
    ("predicted", "flags"),
    [
        ("1.color.gray", (True, True, True)),
        ("1.color.green", (True, True, False)),
        ("1.size.large", (True, False, False)),
        ("0.color.gray", (False, True, True)),
        ("0.size.small", (False, False, False)),
        ("1.color.gray, 1.size.large", (True, False, False)),  # every one must be right
        ("1.color.gray, 0.color.gray", (False, True, True)),
        ("", (False, False, False)),  # at least one must be there
    ],
)
def test_basic_flags_ask_every_triplet(predicted, flags):
    judgement = judged(predicted, "1.color.gray", "basic")
    assert (judgement.object_acc, judgement.attribute_acc, judgement.value_acc) == flags


def test_a_basic_sample_with_two_changes_is_refused():
    with pytest.raises(ValueError, match="has 2"):
        judged("", "0.color.gray, 1.size.large", "basic")


def test_the_eleven_metrics_of_six_replies():
    report = summarise(
        [
            judged("1.color.gray", "1.color.gray", "basic", num_tokens=10),  # right
            judged("1.color.green", "1.color.gray", "basic", num_tokens=20),  # object and attribute
            judged("0.size.small", "0.color.gray, 1.size.large", num_tokens=30),  # 3 cells wrong of 2 changes
            judged("0.color.gray, 1.size.large", "0.color.gray, 1.size.large", num_tokens=40),  # right
            judged("2.color.red", "2.color.red", "view", view="left", num_tokens=50),  # right
            judged(Malformed(reason="x"), "0.color.gray, 1.size.large, 2.color.red", "view", "right", 60),  # 3 missing
        ]
    )
    assert report.metrics == {
        "Basic/ObjAcc": 1.0,  # 2 / 2
        "Basic/AttrAcc": 1.0,  # 2 / 2
        "Basic/ValAcc": 0.5,  # 1 / 2
        "Basic/Acc": 0.5,  # 1 / 2
        "Event/Diff": 1.5,  # (3 + 0) / 2
        "Event/NDiff": 0.75,  # (3/2 + 0) / 2
        "Event/Acc": 0.5,  # 1 / 2
        "View/Diff": 1.5,  # (0 + 3) / 2
        "View/NDiff": 0.5,  # (0 + 3/3) / 2
        "View/Acc": 0.5,  # 1 / 2
        "TAcc": 0.5,  # 3 / 6
    }
    assert report.by_view == {"center": 0.5, "left": 1.0, "right": 0.0}  # 2 / 4, 1 / 1, 0 / 1
    assert report.by_objects == {"1-3": 0.5, "4-6": None, "7-8": None, "9-10": None}
    assert report.by_changes == {"1": pytest.approx(2 / 3), "2": 0.5, "3": 0.0}
    assert report.well_formed == pytest.approx(5 / 6)
    assert report.mean_tokens == 35.0  # 210 / 6
    assert report.num_samples == 6


def test_a_mean_over_no_samples_is_none():
    report = summarise([])
    assert tuple(report.metrics) == METRICS
    assert set(report.metrics.values()) == {None}
    assert (report.well_formed, report.mean_tokens, report.num_samples) == (None, None, 0)
    only_event = summarise([judged("", "0.color.gray")])
    assert only_event.metrics["Basic/ObjAcc"] is None
    assert only_event.metrics["Event/Acc"] == 0.0


@pytest.mark.parametrize(("count", "band"), [(1, "1-3"), (3, "1-3"), (4, "4-6"), (7, "7-8"), (8, "7-8"), (10, "9-10")])
def test_object_bands(count, band):
    true = answer("0.color.gray").triplets
    judgement = judge(
        answer("0.color.gray"),
        Gold(setting="event", scene=SCENE[:1] * count, transformations=true),
        num_tokens=1,
    )
    assert [name for name, value in summarise([judgement]).by_objects.items() if value == 1.0] == [band]


def test_table_rows_put_reports_side_by_side():
    before = summarise([judged("", "0.color.gray")])
    after = summarise([judged("0.color.gray, 1.size.large", "0.color.gray, 1.size.large")])
    rows = dict(table_rows([before, after]))
    assert list(rows)[:11] == list(METRICS)
    assert rows["TAcc"] == [0.0, 1.0]
    assert rows["TAcc, changes: 1"] == [0.0, None]
    assert rows["TAcc, changes: 2"] == [None, 1.0]
