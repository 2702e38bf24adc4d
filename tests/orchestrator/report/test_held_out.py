"""Which held-out pairs are shown at the end of a run, and how. Truth: 0.color.blue, where a test does not say more."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console, RenderableType

from orchestrator.report.held_out import Replies, choose_prompts, show_prompt
from records.samples import Prompt
from records.task import printable
from tasks.tvr.language.gold import Gold
from tasks.tvr.language.scene import Transformation
from tasks.tvr.task import TASK
from tests.fakes import GOLD, make_prompt

RIGHT = "<think> 0 red blue 1 blue blue </think> <answer> 0.color.blue </answer>"
WRONG = "<think> 0 red red 1 blue blue </think> <answer> 1.size.large </answer>"
TWO_CHANGES = Gold(
    setting="event",
    scene=GOLD.scene,
    transformations=(Transformation(0, "color", "blue"), Transformation(1, "material", "rubber")),
)


def kept(reply: str) -> dict[str, Any]:
    """As a run keeps it; only right ones are told by `exact`."""
    return {"reply": reply, "exact": float(reply == RIGHT)}


def make_held_out(fates: Mapping[str, str]) -> tuple[list[Prompt], Replies, Replies]:
    """Prompts, replies before and after. A fate, by id of the prompt, is two letters: `w` for wrong, `r` for right."""
    prompts = [replace(make_prompt(name), gold=replace(GOLD, view=name.split("/")[2])) for name in fates]
    before, after = ({name: kept(RIGHT if fate[at] == "r" else WRONG) for name, fate in fates.items()} for at in (0, 1))
    return prompts, before, after


def chosen(fates: Mapping[str, str]) -> list[str]:
    return [prompt.id for prompt in choose_prompts(TASK, *make_held_out(fates))]


@pytest.mark.parametrize(
    ("fates", "expected"),
    [
        # Two that became right and one that stayed wrong, each in another view where there is one.
        (
            {
                "0/basic/center": "rr",
                "1/basic/center": "wr",
                "2/basic/center": "wr",
                "3/view/left": "ww",
                "4/view/left": "wr",
                "5/view/right": "ww",
            },
            ["1/basic/center", "4/view/left", "5/view/right"],
        ),
        # All in one view: the first ones.
        (
            {"0/basic/center": "ww", "1/basic/center": "wr", "2/basic/center": "wr", "3/basic/center": "wr"},
            ["1/basic/center", "2/basic/center", "0/basic/center"],
        ),
        # Nothing became right: still wrong ones.
        (
            {
                "0/basic/center": "ww",
                "1/basic/center": "ww",
                "2/view/left": "ww",
                "3/view/right": "ww",
                "4/a/left": "rr",
            },
            ["0/basic/center", "2/view/left", "3/view/right"],
        ),
        # Nothing stayed wrong: a third that became right.
        ({"0/a/center": "wr", "1/a/center": "wr", "2/a/center": "wr"}, ["0/a/center", "1/a/center", "2/a/center"]),
        # What became wrong comes before what was right all the time.
        ({"0/a/center": "rr", "1/a/center": "rw", "2/a/center": "wr"}, ["2/a/center", "1/a/center", "0/a/center"]),
        ({"0/a/center": "rr"}, ["0/a/center"]),
        ({}, []),
    ],
)
def test_pairs_that_became_right_come_first_then_one_that_stayed_wrong(fates: dict[str, str], expected: list[str]):
    assert chosen(fates) == expected
    assert chosen(fates) == expected


def test_a_pair_without_a_reply_before_or_after_is_not_chosen():
    prompts, before, after = make_held_out({"0/a/center": "wr", "1/a/center": "wr", "2/a/center": "wr"})
    del before["0/a/center"], after["1/a/center"]
    assert [prompt.id for prompt in choose_prompts(TASK, prompts, before, after)] == ["2/a/center"]


def printed(shown: RenderableType, terminal: bool = False) -> str:
    console = Console(width=80, force_terminal=terminal, color_system="standard" if terminal else "auto", _environ={})
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def shown(before: str, after: str, gold: Gold = GOLD, terminal: bool = False) -> str:
    prompt = replace(make_prompt("7/basic/center"), gold=gold)
    return printed(show_prompt(TASK, prompt, {prompt.id: kept(before)}, {prompt.id: kept(after)}), terminal)


def words(text: str) -> str:
    """Without the line breaks of the table."""
    return " ".join(text.split())


def test_a_pair_shows_its_id_its_true_changes_and_both_replies_marked():
    text = shown("<think> a </think> <answer> 1.size.large, 0.color.blue </answer>", RIGHT, TWO_CHANGES)
    assert words(text) == (
        "7/basic/center true 0.color.blue, 1.material.rubber "
        "before ✗ <think> a </think> <answer> 1.size.large ✗, 0.color.blue ✓ </answer> missing: 1.material.rubber "
        "after ✗ <think> 0 red blue 1 blue blue </think> <answer> 0.color.blue ✓ </answer> missing: 1.material.rubber"
    )
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_a_right_reply_misses_nothing():
    assert words(shown(RIGHT, RIGHT)).endswith(
        "after ✓ <think> 0 red blue 1 blue blue </think> <answer> 0.color.blue ✓ </answer>"
    )


def test_marks_are_green_and_red_on_a_terminal():
    text = shown(WRONG, RIGHT, terminal=True)
    assert text.count("\x1b[32m✓") == 2  # the reply after, and its triplet
    assert text.count("\x1b[31m✗") == 2


def test_a_triplet_that_is_there_twice_is_right_once():
    assert "0.color.blue ✓, 0.color.blue ✗" in words(
        shown("<think></think><answer>0.color.blue,0.color.blue</answer>", RIGHT)
    )


def test_a_malformed_reply_is_said_to_be_so_with_the_reason():
    assert "before ✗ malformed: there is text outside the tags so <think></think><answer></answer> missing" in words(
        shown("so <think></think><answer></answer>", RIGHT)
    )


def test_an_empty_answer_and_a_pair_without_changes_say_no_change():
    nothing = replace(GOLD, setting="event", transformations=())
    text = words(shown("<think></think><answer></answer>", WRONG, nothing))
    assert "true no change before ✓ <think> </think> <answer> no change </answer> after ✗" in text


def test_the_middle_of_a_long_reply_is_left_out():
    long = f"<think> first {'word ' * 1000} last </think> <answer> {'1.size.large, ' * 999}0.color.blue </answer>"
    text = words(shown(long, f"{long} so"))
    assert len(text) < 1500
    assert "<think> first word" in text
    assert "word last </think> <answer> 1.size.large ✗" in text
    assert "1.size.large ✗, ... 992 more ..., 1.size.large ✗" in text
    assert "0.color.blue ✓ </answer> after" in text
    assert text.count("size.large ✗") == 7


def test_what_is_shortened_has_both_ends_and_nothing_that_a_terminal_would_obey():
    assert printable(" a\nb\t c ") == "a b c"
    assert printable("x" * 300) == "x" * 300
    assert printable("a" * 200 + "b" * 200) == "a" * 150 + " ... " + "b" * 150
    assert printable("a\x1b[31mb") == "a\N{REPLACEMENT CHARACTER}[31mb"
