"""The reply parser."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.tvr.language.answer import Answer, Malformed, format_answer, parse
from tasks.tvr.language.scene import ATTRIBUTES, Transformation


def triplets(reply: str) -> list[str]:
    answer = parse(reply)
    assert isinstance(answer, Answer), answer
    return list(map(str, answer.triplets))


def test_triplets_are_read_in_the_order_written():
    reply = "<think>a</think><answer>2.color.cyan,0.size.large</answer>"
    assert triplets(reply) == ["2.color.cyan", "0.size.large"]


def test_case_and_white_space_do_not_matter():
    reply = "\n<THINK> It turned. </Think>\n <Answer> 02 . Color\n. CYAN ,0.size.large </ANSWER> \n"
    assert triplets(reply) == ["2.color.cyan", "0.size.large"]


@pytest.mark.parametrize("inside", ["", "  \n "])
def test_an_empty_answer_means_no_change(inside):
    assert triplets(f"<think>a</think><answer>{inside}</answer>") == []


def test_an_impossible_triplet_is_still_well_formed():
    assert triplets("<think></think><answer>99.colour.pink</answer>") == ["99.colour.pink"]


def test_a_huge_index_is_an_impossible_object():
    assert triplets(f"<think></think><answer>{'9' * 5000}.color.cyan</answer>") == ["1000000000.color.cyan"]
    assert triplets(f"<think></think><answer>{'0' * 5000}2.color.cyan</answer>") == ["2.color.cyan"]


def test_the_reasoning_is_kept():
    answer = parse("<think> it moved </think><answer></answer>")
    assert isinstance(answer, Answer)
    assert answer.reasoning == "it moved"


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "0.color.cyan",
        "<answer>0.color.cyan</answer>",
        "<think>a</think>0.color.cyan",
        "<think>a</think><answer>0.color.cyan",  # cut off
        "<answer>0.color.cyan</answer><think>a</think>",
        "<think>a<answer>0.color.cyan</think></answer>",
        "<think>a</think><think>b</think><answer>0.color.cyan</answer>",
        "<think>a</think><answer>0.color.cyan</answer><answer></answer>",
        "<think>a</think><answer>0.color.cyan</answer> done",
        "so <think>a</think><answer>0.color.cyan</answer>",
        "<think>a</think> so <answer>0.color.cyan</answer>",
        "<think>a</think><answer>0.color</answer>",
        "<think>a</think><answer>0.color.cyan.</answer>",
        "<think>a</think><answer>0.color.cyan,</answer>",
        "<think>a</think><answer>,</answer>",
        "<think>a</think><answer>-1.color.cyan</answer>",
        "<think>a</think><answer>nothing changed</answer>",
        "<think>a</think><answer>\N{SUPERSCRIPT TWO}.color.cyan</answer>",
        "<thin\N{KELVIN SIGN}>a</think><answer>0.color.cyan</answer>",
        "<think>a</think><an\N{LATIN SMALL LETTER LONG S}wer>0.color.cyan</answer>",
    ],
)
def test_everything_else_is_malformed_and_says_why(reply):
    answer = parse(reply)
    assert isinstance(answer, Malformed), answer
    assert answer.reason


fragments = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "0.color.cyan", "1.size.", ",", ".", " ", "\n", "<", ">", "\u0130"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(fragments | st.text(max_size=5), max_size=12).map("".join))
def test_no_text_makes_it_raise(reply):
    assert isinstance(parse(reply), Answer | Malformed)


changes = st.builds(
    lambda index, cell: Transformation(index=index, attribute=cell[0], value=cell[1]),
    st.integers(0, 20),
    st.sampled_from([(attribute, value) for attribute, values in ATTRIBUTES.items() for value in values]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(changes, max_size=6).map(tuple))
def test_what_was_written_is_read_back(written):
    answer = parse(format_answer(written, "one by one"))
    assert answer == Answer(triplets=written, reasoning="one by one")


def test_a_long_reply_is_read_in_linear_time():
    # A quadratic scan of 2 MB takes minutes; the test suite's patience is the assertion.
    assert isinstance(parse("<think>" + "<" * 1_000_000 + "0." * 500_000), Malformed)
