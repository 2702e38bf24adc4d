"""From what cells leave behind to the numbers of a study; expected values worked out by hand."""

import json
from math import sqrt

import pytest

from orchestrator.study.results import (
    CHANGED_VIEW,
    HALF_GAIN,
    SAME_VIEW,
    StudyResult,
    ValidationPoint,
    judge_reply,
    mean_and_error,
    read_cell,
    read_replies,
    reply_numbers,
    samples_until_half_gain,
    summarise_cells,
    training_curve,
    validation_curve,
)
from records.samples import Prompt
from tasks.tvr.language.gold import Gold
from tasks.tvr.language.prompt import build_messages
from tasks.tvr.language.scene import Transformation
from tests.fakes import SCENE, TRUE_REPLY, make_prompt
from tests.orchestrator.study.small_studies import synthetic, write_replies, write_run

CHANGES = (Transformation(0, "color", "blue"), Transformation(1, "size", "large"))


def prompt_of(number: int, setting: str, view: str, changes: tuple[Transformation, ...]) -> Prompt:
    return Prompt(
        id=f"{number}/{setting}/{view}",
        images=(b"initial", b"final"),
        messages=build_messages(SCENE),
        gold=Gold(setting=setting, view=view, scene=SCENE, transformations=changes),
    )


def point(samples: float, tacc: float) -> ValidationPoint:
    return ValidationPoint(version=0, samples=samples, seconds=0, tacc=tacc, careful=None, triplets=None, length=None)


def test_numbers_are_over_the_replies_they_are_about():
    asked = [
        (prompt_of(0, "basic", "center", CHANGES[:1]), TRUE_REPLY),  # right
        (prompt_of(1, "event", "center", CHANGES), "<think> </think> <answer> 0.color.blue </answer>"),  # 1 of 2 cells
        (prompt_of(2, "view", "left", CHANGES), "nonsense"),  # 2 cells wrong
        (
            prompt_of(3, "view", "right", CHANGES[:1]),
            "<think> 0 blue , 1 same </think> <answer> 0.color.blue </answer>",
        ),
        (
            prompt_of(4, "view", "right", CHANGES[:1]),
            "<think> 0 , 1 </think> <answer> 0.color.red, 1.size.large </answer>",
        ),
    ]
    numbers = reply_numbers([judge_reply(prompt, text, 10) for prompt, text in asked])
    assert numbers["TAcc"] == 2 / 5
    assert (numbers["Basic/Acc"], numbers["Event/Acc"], numbers["View/Acc"]) == (1.0, 0.0, 1 / 3)
    assert numbers["View/NDiff"] == (1 + 0 + 2) / 3
    assert (numbers[f"TAcc, {SAME_VIEW}"], numbers[f"TAcc, {CHANGED_VIEW}"]) == (1 / 2, 1 / 3)
    assert (numbers["TAcc, view left"], numbers["TAcc, view right"]) == (0.0, 1 / 2)
    assert (numbers["TAcc, changes: 1"], numbers["TAcc, changes: 2"]) == (2 / 3, 0.0)
    assert numbers["TAcc, 2 objects"] == 2 / 5
    # Careful: 0 and 1 named, in order. In the centre none of two; left no, right both.
    assert numbers["careful replies"] == 2 / 5
    assert (numbers[f"careful replies, {SAME_VIEW}"], numbers[f"careful replies, {CHANGED_VIEW}"]) == (0.0, 2 / 3)
    assert numbers["triplets a reply"] == (1 + 1 + 0 + 1 + 2) / 5
    assert (numbers["well-formed replies"], numbers["reply length, tokens"]) == (4 / 5, 10.0)


def test_a_camera_that_nobody_asked_about_has_no_number():
    numbers = reply_numbers([judge_reply(make_prompt(), TRUE_REPLY, 10)])
    assert numbers[f"TAcc, {CHANGED_VIEW}"] is None
    assert numbers["View/Acc"] is None


def test_half_of_the_gain_lies_on_the_line_between_two_evaluations():
    # From 0.1 to 0.5: half is 0.3, a third of the way from 0.2 (at 100) to 0.5 (at 400): 100 + 300/3 = 200.
    assert samples_until_half_gain([point(0, 0.1), point(100, 0.2), point(400, 0.5)]) == pytest.approx(200)
    # The first crossing counts: half is 0.2, reached at 50 of 100, though the curve falls below it later.
    curve = [point(0, 0.0), point(100, 0.4), point(200, 0.1), point(300, 0.4)]
    assert samples_until_half_gain(curve) == pytest.approx(50)
    assert samples_until_half_gain([point(0, 0.0), point(128, 0.25), point(256, 0.5)]) == 128  # exactly on a point


@pytest.mark.parametrize("taccs", [[0.3, 0.3], [0.3, 0.5, 0.2], []])
def test_without_a_gain_there_is_no_half_of_it(taccs):
    assert samples_until_half_gain([point(100 * place, tacc) for place, tacc in enumerate(taccs)]) is None


def test_mean_and_standard_error():
    # 1, 2, 6: mean 3, squares 4 + 1 + 9 = 14, variance 14/2 = 7, error sqrt(7/3).
    found = mean_and_error([1.0, 2.0, 6.0])
    assert (found.mean, found.count) == (3.0, 3)
    assert found.error == pytest.approx(sqrt(7 / 3))
    assert mean_and_error([5.0]).error is None


def test_a_summary_is_over_the_seeds_that_have_the_number():
    one, two = synthetic(0.5, 1), synthetic(0.7, 2)
    two = two.model_copy(update={"numbers": two.numbers | {HALF_GAIN: None}})
    summary = summarise_cells([one, two])
    assert summary["TAcc"].mean == pytest.approx(0.6)
    assert (summary[HALF_GAIN].count, summary[HALF_GAIN].mean) == (1, one.numbers[HALF_GAIN])
    assert (summary["seconds, set_up"].mean, summary["seconds, set_up"].error) == (31.0, 0.0)


def test_seconds_add_up_over_the_parts_of_a_stopped_run():
    rows = [
        {"step": 1, "step_s": 3.0, "elapsed_s": 3.0, "answer_length": 20.0, "reward": 1.0, "careful": 0.5},
        {"step": 2, "step_s": 2.0, "elapsed_s": 5.0, "answer_length": 20.0},
        {"step": 3, "step_s": 4.0, "elapsed_s": 4.0, "answer_length": 20.0},  # after a kill the clock begins anew
    ]
    curve = training_curve(rows, answers_per_step=128)
    assert [(at.samples, at.seconds) for at in curve] == [(128, 3.0), (256, 5.0), (384, 9.0)]
    assert (curve[0].reward, curve[0].careful, curve[1].reward, curve[1].exact) == (1.0, 0.5, None, None)


def test_an_evaluation_stands_at_the_middle_of_the_versions_that_answered():
    training = training_curve([{"step": n, "step_s": 2.0, "answer_length": 9.0} for n in (1, 2, 3, 4)], 10)
    evaluations = {
        name: {"versions": versions, "metrics": {"TAcc": tacc}, "mean_tokens": 7.0, "careful": 0.2}
        for name, versions, tacc in [
            ("before", [0, 0], 0.0),
            ("version 4", [4, 4], 0.7),
            ("after", [4, 4], 0.8),  # at the same version as the one before it: counts in its place
            ("version 2", [2, 3], 0.5),
        ]
    }
    curve = validation_curve(evaluations, training, answers_per_step=10)
    assert [(at.version, at.samples, at.seconds, at.tacc) for at in curve] == [
        (0.0, 0.0, 0.0, 0.0),
        (2.5, 25.0, 5.0, 0.5),  # half-way through the third step, which took from 4 to 6 s
        (4.0, 40.0, 8.0, 0.8),
    ]
    assert (curve[1].careful, curve[1].triplets, curve[1].length) == (0.2, None, 7.0)


def test_a_cell_is_read_from_its_run_directory_and_replies(tmp_path):
    prompts = [make_prompt(f"{number}/basic/center") for number in range(4)]
    write_run(tmp_path / "run", taccs=(0.25, 0.75))
    write_replies(tmp_path / "replies.jsonl", prompts, right=3)
    wall = {"train": 30.0, "test": 5.0}
    cell = read_cell(tmp_path / "run", tmp_path / "replies.jsonl", prompts, 64, wall, seed=1, date="today", commit=None)
    assert cell.numbers["TAcc"] == 3 / 4
    assert cell.numbers[HALF_GAIN] == 64.0  # halfway along the line from 0 to 2 steps of 64
    assert (cell.seconds.training, cell.seconds.set_up, cell.seconds.test) == (4.0, 26.0, 5.0)
    assert [at.samples for at in cell.training] == [64.0, 128.0]


def test_the_base_has_a_test_and_no_training(tmp_path):
    prompts = [make_prompt()]
    write_replies(tmp_path / "replies.jsonl", prompts)
    made = {"seed": None, "date": "today", "commit": None}
    cell = read_cell(tmp_path / "none", tmp_path / "replies.jsonl", prompts, 64, {"test": 5.0}, **made)
    assert (cell.training, cell.validation, cell.numbers[HALF_GAIN]) == ((), (), None)
    assert (cell.seconds.training, cell.seconds.set_up, cell.seconds.test) == (0.0, 0.0, 5.0)


def test_a_missing_reply_is_an_error_and_no_wrong_answer(tmp_path):
    prompts = [make_prompt("0/basic/center"), make_prompt("1/basic/center")]
    write_replies(tmp_path / "replies.jsonl", prompts[:1])
    with pytest.raises(ValueError, match="has no reply to 1 of 2 pairs, 1/basic/center the first"):
        read_replies(tmp_path / "replies.jsonl", prompts)


def test_a_study_is_the_same_after_a_round_trip_through_json(study_result):
    text = study_result.model_dump_json(indent=1)
    assert StudyResult.model_validate_json(text) == study_result
    content = json.loads(text)
    assert content["arms"][0]["summary"]["TAcc"].keys() == {"mean", "error", "count"}
    assert (content["arms"][0]["cells"][0]["seed"], content["cells_done"]) == (1, 25)
