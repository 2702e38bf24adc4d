"""Rules for questions: the answer in a reply against the true one, and the form of the reply.

Each returns *right*, from 0 to 1, which is the accuracy too, and *format*. A rule of your own gets the reply and a
`Truth`, and must return `right` among its terms:

    def nearby(reply: str, truth: Truth) -> dict[str, float]:
        said = read_answer(reply, truth.form)
        return {"right": 0.0 if said is None else 1 / (1 + abs(float(said) - float(truth.answer)))}
"""

import json
import logging
import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from tasks.questions.truth import Truth, read_answer

Value = TypeVar("Value")
CHOICE = re.compile(r"\W*([A-Za-z])(?![\w'])")
NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?:\s*/\s*\d+)?|[-+]?\.\d+")
FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.S)


class QuestionOptions(BaseModel):
    """Options of the rules for questions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_reward: float = Field(
        default=0.0, ge=0, description="Paid for a reply of the right form, whatever its answer; a right answer is 1."
    )
    tolerance: float = Field(
        default=0.0, ge=0, description="number: how far from the true one still is right, as a share of it."
    )
    fields: tuple[str, ...] = Field(
        default=(), description="json: the fields that count, each alike; by default all of the true answer."
    )


Rule = Callable[[str, Truth, QuestionOptions], dict[str, float]]


def paid(read: Callable[[str], Value], share_right: Callable[[str, Value, QuestionOptions], float]) -> Rule:
    """A rule that *reads* the true answer, and says which share of a reply's answer is right.

    Raises ValueError for a true answer that cannot be read.
    """
    read_once = lru_cache(maxsize=4096)(read)  # all answers to a question have the same truth

    def rule(reply: str, truth: Truth, options: QuestionOptions) -> dict[str, float]:
        value, said = read_once(truth.answer), read_answer(reply, truth.form)
        return {
            "right": 0.0 if said is None else float(share_right(said, value, options)),
            "format": 0.0 if said is None else options.format_reward,
        }

    return rule


def read_words(answer: str) -> str:
    """Case and white space do not matter.

    >>> read_words(" Two  Cubes")
    'two cubes'
    """
    return " ".join(answer.split()).casefold()


def read_choice(answer: str) -> str:
    """The letter of an option, alone or before its text.

    >>> read_choice("(b)"), read_choice("C. two cubes")
    ('B', 'C')
    """
    found = CHOICE.match(answer)
    if found is None:
        raise ValueError(f"is no choice: {answer!r} does not begin with a letter by itself, such as B or (B)")
    return found[1].upper()


def read_number(answer: str) -> Fraction:
    """The only number in it; commas part thousands, a slash is a fraction, and per cent are hundredths.

    >>> read_number("$1,250.50"), read_number("3/4"), read_number("about 5 %")
    (Fraction(2501, 2), Fraction(3, 4), Fraction(1, 20))
    """
    found = NUMBER.findall(answer)
    if len(found) != 1:
        raise ValueError(f"is no number: {answer!r} has {len(found)} numbers, and needs one")
    above, _, below = found[0].replace(",", "").partition("/")
    if below and not Fraction(below.strip()):
        raise ValueError(f"is no number: {answer!r} divides by 0")
    value = Fraction(above.strip()) / Fraction(below.strip() or 1)
    return value / 100 if answer.rstrip().endswith("%") else value


def read_formula(answer: str) -> Any:
    """As math-verify reads LaTeX and plain expressions."""
    parsed = _parse_formula(answer)
    if not parsed:
        raise ValueError(f"is no formula that math-verify can read: {answer!r}")
    return parsed


def read_object(answer: str) -> dict[str, Any]:
    """A JSON object, perhaps in a fence of backticks."""
    fenced = FENCED.search(answer)
    try:
        value = json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON ({error}): {answer!r}") from error
    if not isinstance(value, dict):
        raise ValueError(f"is no JSON object: {answer!r}")
    return value


def _same_choice(said: str, true: str, options: QuestionOptions) -> bool:
    try:
        return read_choice(said) == true
    except ValueError:  # the policy's doing: wrong, like any other wrong answer
        return False


def _same_number(said: str, true: Fraction, options: QuestionOptions) -> bool:
    try:
        value = read_number(said)
    except ValueError:
        return False
    return abs(value - true) <= Fraction(options.tolerance) * abs(true)


def _same_formula(said: str, true: Any, options: QuestionOptions) -> bool:
    from math_verify import verify

    parsed = _parse_formula(said)
    return bool(parsed) and bool(verify(true, parsed, timeout_seconds=None))


def _same_fields(said: str, true: dict[str, Any], options: QuestionOptions) -> float:
    try:
        value = read_object(said)
    except ValueError:
        return 0.0
    names = options.fields or tuple(true)
    return sum(name in value and _alike(value[name], true.get(name)) for name in names) / max(1, len(names))


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return read_words(one) == read_words(other)
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)  # to Python, True is 1


def _parse_formula(text: str) -> Any:
    """Without its time limit, which a thread cannot have: a rule that hangs ends the run at its own deadline."""
    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it would say so for each reply
    return parse(text if "$" in text or "\\boxed" in text else f"${text}$", parsing_timeout=None)


RULES: dict[str, Rule] = {
    "exact": paid(read_words, lambda said, true, options: read_words(said) == true),
    "choice": paid(read_choice, _same_choice),
    "number": paid(read_number, _same_number),
    "math": paid(read_formula, _same_formula),
    "json": paid(read_object, _same_fields),
}
