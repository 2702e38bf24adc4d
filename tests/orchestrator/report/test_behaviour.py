"""Behaviour by version and view, worked out by hand."""

import pytest

from orchestrator.report.behaviour import ALL, LENGTH, Look, behaviour, look
from orchestrator.report.run_data import CHANGED, SAME
from tests.orchestrator.report.runs_by_hand import made_up, sample

NAME = "goes through the objects"


def looks(*found: tuple[int, str, float]) -> list[Look]:
    return [Look(version, view, {NAME: value}) for version, view, value in found]


def test_means_are_over_the_replies_of_each_view():
    (only,) = behaviour(looks((3, SAME, 1.0), (3, SAME, 0.0), (3, CHANGED, 0.0), (3, CHANGED, 0.0)))
    assert (only.first, only.last) == (3, 3)
    assert only.samples == {ALL: 4, SAME: 2, CHANGED: 2}
    assert only.means == {NAME: {ALL: 0.25, SAME: 0.5, CHANGED: 0.0}}


def test_versions_are_put_together_in_bins_of_one_width():
    bins = behaviour(looks(*((version, SAME, float(version)) for version in range(5))), most_bins=2)
    assert [(it.first, it.last, it.means[NAME][ALL]) for it in bins] == [(0, 2, 1.0), (3, 4, 3.5)]


def test_versions_without_a_reply_are_no_bin():
    assert [it.first for it in behaviour(looks((0, SAME, 1.0), (9, SAME, 1.0)), most_bins=10)] == [0, 9]


def test_a_task_without_views_has_all_alone():
    assert behaviour(looks((0, "", 1.0)))[0].samples == {ALL: 1}


def test_no_replies_have_no_behaviour():
    assert behaviour([]) == []


def test_a_reply_is_looked_at_as_its_task_does_under_its_oldest_version():
    careful = "<think> 0 turned blue , 1 did not </think> <answer> 0.color.blue </answer>"
    samples = [sample(2, 0, 0, reply=careful, versions=[1, 1, 2]), sample(2, 0, 1)]
    first, second = look(made_up(samples=samples))
    assert (first.version, first.view) == (1, SAME)
    assert first.values == {NAME: 1.0, "objects named": 2.0, "triplets predicted": 1.0, LENGTH: 3.0}
    assert second.values[NAME] == 0.0


@pytest.mark.parametrize("changes", [{"prompts": {}}, {"task": None}])
def test_what_cannot_be_read_beside_the_truth_is_left_out(changes):
    assert look(made_up(samples=[sample(1, 0, 0)], **changes)) == []
