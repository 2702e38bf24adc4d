"""Rules for questions, by hand."""

import pytest

from records.task import load_task
from reward_service.rules import load_rule, score
from tasks.questions.rules import RULES, QuestionOptions
from tasks.questions.truth import Truth, read_answer, write_answer

TASK = load_task("questions")


def right(rule: str, said: str, true: str, **options: object) -> float:
    """How right the answer *said* is."""
    reply = f"<think> so </think> <answer> {said} </answer>"
    return RULES[rule](reply, Truth(answer=true), QuestionOptions(**options))["right"]


@pytest.mark.parametrize(
    ("rule", "true", "right_ones", "wrong_ones"),
    [
        ("exact", "Two cubes", ["two  CUBES", "Two cubes"], ["two cubes.", "cubes", "Two", ""]),
        ("choice", "B", ["B", "b", "(B)", "B.", "B: 4", "**B**"], ["A", "Bob", "AB", "", "the B", "I'm"]),
        ("choice", "(C) two cubes", ["C", "C. two cubes"], ["two cubes", "A"]),
        (
            "number",
            "1,250",
            ["1250", "1,250.0", "$1250", "1250 cubes", "1.25e3", "2500/2", "125000%"],
            ["1251", "-1250", "1250 or 1251", "many", "", "1/0"],
        ),
        ("number", "-0.5", ["-.5", "-1/2", "-50 %"], ["0.5", "-0.51"]),
        (
            "math",
            "\\frac{1}{2}",
            ["1/2", "0.5", "$\\frac{2}{4}$", "\\frac12", "50\\%"],
            ["2", "x", "", "one half of it", "\\frac{1}{3}"],
        ),
        ("math", "x^2 + 2x + 1", ["(x+1)^2", "1 + 2x + x^2"], ["(x+2)^2"]),
        (
            "json",
            '{"shape": "cube", "count": 2, "big": true}',
            [
                '{"count": 2, "shape": "Cube", "big": true, "more": 1}',
                '```json\n{"shape":"cube","count":2.0,"big":true}\n```',
            ],
            ["cube", "[1]", "{", "{}", '"cube"', ""],
        ),
    ],
)
def test_answers_by_hand(rule: str, true: str, right_ones: list[str], wrong_ones: list[str]):
    assert {said: right(rule, said, true) for said in right_ones} == dict.fromkeys(right_ones, 1.0)
    assert {said: right(rule, said, true) for said in wrong_ones} == dict.fromkeys(wrong_ones, 0.0)


def test_json_pays_for_each_field_that_is_right():
    true = '{"shape": "cube", "count": 2, "big": true, "where": null}'
    assert right("json", '{"shape": "cube", "count": 3, "big": 1, "where": null}', true) == 2 / 4  # true is not 1
    assert right("json", '{"shape": "cube", "count": 3}', true, fields=("shape", "count")) == 1 / 2


def test_a_tolerance_is_a_share_of_the_true_number():
    assert [right("number", said, "200", tolerance=0.05) for said in ("190", "210", "189", "211")] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("rule", "true", "says"),
    [
        ("choice", "two cubes", "is no choice: 'two cubes' does not begin with a letter by itself"),
        ("number", "two", "is no number: 'two' has 0 numbers, and needs one"),
        ("number", "1 or 2", "has 2 numbers, and needs one"),
        ("number", "1/0", "divides by 0"),
        ("math", "", "is no formula that math-verify can read: ''"),
        ("json", "cube", "is no JSON"),
        ("json", "[1]", r"is no JSON object: '\[1\]'"),
    ],
)
def test_a_truth_that_a_rule_cannot_read_is_refused_whatever_the_reply(rule: str, true: str, says: str):
    for reply in ("", "<think></think><answer>1</answer>"):
        with pytest.raises(ValueError, match=says):
            RULES[rule](reply, Truth(answer=true), QuestionOptions())


@pytest.mark.parametrize(
    ("form", "reply", "answer"),
    [
        ("tags", "<think> a </think> <answer> 3 </answer>", "3"),
        ("tags", "\n<think></think><answer>\n two\nlines </answer>\n", "two\nlines"),
        ("tags", "<answer> 3 </answer>", None),
        ("tags", "<think> a </think> <answer> 3 </answer> <answer> 4 </answer>", None),
        ("tags", "<think> <answer> 3 </answer> </think> <answer> 4 </answer>", None),
        ("tags", "so <think> a </think> <answer> 3 </answer>", None),
        ("tags", "<think> a <answer> 3 </answer>", None),
        ("tags", "<think> a </think> <answer> 3", None),
        ("boxed", "first \\boxed{1}, then \\boxed{\\frac{1}{2}} it is", "\\frac{1}{2}"),
        ("boxed", "\\boxed{1} and \\boxed{2", None),
        ("boxed", "3", None),
        ("plain", "  3 ", "3"),
        ("plain", "  ", None),
    ],
)
def test_where_the_answer_stands(form, reply: str, answer: str | None):
    assert read_answer(reply, form) == answer


@pytest.mark.parametrize("form", ["tags", "boxed", "plain"])
def test_the_right_answer_is_right_by_the_rule_and_has_the_form(form):
    truth = Truth(answer="\\frac{1}{2}", form=form)
    found = RULES["math"](write_answer(truth, ""), truth, QuestionOptions(format_reward=0.25))
    assert found == {"right": 1.0, "format": 0.25}


def test_the_format_is_paid_for_a_wrong_answer_too_and_nothing_for_a_malformed_one():
    options = QuestionOptions(format_reward=0.5)
    wrong, malformed = (RULES["exact"](reply, Truth(answer="3"), options) for reply in (write("4"), "3"))
    assert (wrong, malformed) == ({"right": 0.0, "format": 0.5}, {"right": 0.0, "format": 0.0})


def write(answer: str) -> str:
    return f"<think></think><answer>{answer}</answer>"


def test_a_score_has_the_right_share_as_its_column():
    rule = load_rule(TASK, "json", QuestionOptions(format_reward=0.5))
    scored = score(TASK, rule, write('{"a": 1}'), Truth(answer='{"a": 1, "b": 2}'))
    assert (scored.total, scored.parts) == (1.0, {"right": 0.5, "format": 0.5})
    assert scored.judgement.columns == {"right": 0.5, "well_formed": True}


def test_a_rule_of_ones_own_must_say_what_is_right():
    assert score(TASK, lambda reply, truth: {"right": 1, "short": 2}, "", Truth(answer="3")).judgement.right == 1
    with pytest.raises(ValueError, match="without the term `right`, which the accuracy is"):
        score(TASK, lambda reply, truth: {"short": 2}, "", Truth(answer="3"))


def test_a_report_by_hand():
    def judged(right: float, shape: str, reply: str = write("3")):
        return TASK.judge(reply, Truth(answer="3", groups=(("shape", shape),)), {"right": right})

    report = TASK.report([judged(1, "cube"), judged(0, "cube"), judged(1, "ball"), judged(0, "ball", "3")], 5.0)
    assert report["num_samples"] == 4
    assert report["metrics"] == {"accuracy": 0.5, "well-formed replies": 0.75}
    assert report["by"] == {
        "shape": {"cube": {"accuracy": 0.5, "num_samples": 2}, "ball": {"accuracy": 0.5, "num_samples": 2}}
    }
    other = TASK.report([judged(1, "cone")], None)
    assert dict(TASK.table([report, other])) == {
        "accuracy": [0.5, 1.0],
        "accuracy, shape ball": [0.5, None],
        "accuracy, shape cone": [None, 1.0],
        "accuracy, shape cube": [0.5, None],
        "well-formed replies": [0.75, 1.0],
        "reply length, tokens": [5.0, None],
        "samples": [4.0, 1.0],
    }
