"""A reply beside the true answer."""

import pytest

from records.task import Claim
from tasks.questions.task import TASK
from tasks.questions.truth import Form, Truth


@pytest.mark.parametrize(
    ("form", "reply", "reasoning"),
    [
        ("tags", "<think> two and one </think> <answer> 3 </answer>", "two and one"),
        ("boxed", "two and one, so \\boxed{3}.", "two and one, so"),
        ("plain", "3", ""),
    ],
)
def test_the_true_answer_in_the_same_words_is_right(form: Form, reply: str, reasoning: str):
    read = TASK.read(reply, Truth(answer="3", form=form))
    assert (read.claims, read.reasoning, read.malformed) == ((Claim("3", True),), reasoning, None)


def test_whether_other_words_are_right_only_a_rule_can_tell():
    assert TASK.read("<think></think><answer>three</answer>", Truth(answer="3")).claims == (Claim("three", None),)


def test_a_reply_of_another_form_is_malformed():
    read = TASK.read("3", Truth(answer="3"))
    assert read.malformed == "the reply has not the form tags"
    assert (read.answer, read.missing) == (None, ("3",))
