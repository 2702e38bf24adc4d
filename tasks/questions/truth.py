"""The truth of a question, and where in a reply its answer stands."""

import re
from dataclasses import dataclass
from typing import Literal

Form = Literal["tags", "boxed", "plain"]
TAGS = re.compile(
    r"\s*<think>(?:(?!</?think>|</?answer>).)*</think>\s*<answer>((?:(?!</?answer>).)*)</answer>\s*", re.S
)
BOXED = "\\boxed{"


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What a rule is shown of a question: the true *answer* as text, and the *form* that replies must have.

    *groups* are the values of the columns by which accuracy is told, in order; *reasoning* is for `sft`.
    """

    answer: str
    form: Form = "tags"
    groups: tuple[tuple[str, str], ...] = ()
    reasoning: str = ""


def read_answer(reply: str, form: Form) -> str | None:
    """The answer in *reply*, without white space around it; None if the reply has not this form.

    >>> read_answer("<think> 3 cubes </think> <answer> 3 </answer>", "tags")
    '3'
    >>> read_answer("so it is \\\\boxed{\\\\frac{1}{2}}.", "boxed")
    '\\\\frac{1}{2}'
    """
    if form == "tags":
        found = TAGS.fullmatch(reply)
        return found[1].strip() if found else None
    if form == "boxed":
        return _last_boxed(reply)
    return reply.strip() or None


def write_answer(truth: Truth, reasoning: str) -> str:
    """The right reply."""
    if truth.form == "tags":
        return f"<think> {reasoning} </think> <answer> {truth.answer} </answer>"
    answer = f"{BOXED}{truth.answer}}}" if truth.form == "boxed" else truth.answer
    return f"{reasoning} {answer}".strip()


def _last_boxed(reply: str) -> str | None:
    """What stands between the braces of the last one, which may hold others."""
    start = reply.rfind(BOXED)
    if start < 0:
        return None
    depth, begin = 1, start + len(BOXED)
    for place in range(begin, len(reply)):
        depth += {"{": 1, "}": -1}.get(reply[place], 0)
        if depth == 0:
            return reply[begin:place].strip()
    return None  # cut off
