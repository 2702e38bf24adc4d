"""The numbers behind the learning charts, worked out by hand."""

from orchestrator.report.run_data import CHANGED, SAME
from orchestrator.report.series import averaged, held_out, token_ages
from tests.orchestrator.report.runs_by_hand import made_up, sample


def test_more_rows_than_points_are_averaged_in_blocks():
    rows = [{"step": step, "reward": float(step)} for step in range(1, 6)]
    assert averaged(rows, ["reward", "loss"], most=3) == {"step": [1.5, 3.5, 5.0], "reward": [1.5, 3.5, 5.0]}


def test_a_value_that_is_missing_or_not_finite_is_none():
    rows = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 2.0}, {"step": 3}]
    assert averaged(rows, ["loss"])["loss"] == [None, 2.0, None]


def test_the_changed_view_is_the_mean_of_its_cameras_and_unknown_ones_are_left_out():
    report = {"versions": [4, 6], "metrics": {"TAcc": 0.5}, "by_view": {"center": 0.75, "left": 0.2, "right": 0.4}}
    bare = {"versions": [0, 0], "metrics": {"TAcc": 0.0}, "by_view": {"center": 0.0, "left": None, "right": None}}
    before, middle = held_out(made_up(evaluations={"version 4 to 6": report, "before": bare}))
    assert (before["version"], before[CHANGED]) == (0.0, None)
    assert (middle["version"], middle["all"], middle[SAME], round(middle[CHANGED], 6)) == (5.0, 0.5, 0.75, 0.3)


def test_ages_of_tokens_count_from_the_version_before_the_step():
    samples = [
        sample(1, 0, 0, versions=[0, 0, 0]),
        sample(2, 1, 0, versions=[0, 0, 1]),
        sample(2, 1, 1, versions=[0] * 3),
    ]
    found = token_ages(made_up(samples=samples))
    assert found["steps"] == [1, 2]
    assert found["shares"] == [[1.0, 0.1667], [0.0, 0.8333]]  # of 6 tokens of step 2, five are one version old
    assert found["a_sample"] == [1.0, 1.5]  # two versions in one of its answers, one in the other


def test_without_traces_there_are_no_ages():
    assert token_ages(made_up())["steps"] == []
