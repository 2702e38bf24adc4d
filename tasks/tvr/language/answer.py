"""Reply text to `Answer` or `Malformed`: the only parser in the project.

A reply is `<think> reasoning </think> <answer> triplets </answer>`; triplets are `index.attribute.value`, separated by
commas. White space and letter case do not matter, and an empty answer means "no change". The scan is linear in the
length of the reply, and no text makes it raise.
"""

import re
from dataclasses import dataclass
from itertools import islice

from tasks.tvr.language.scene import Transformation

_TAG = re.compile(r"<(/?)(think|answer)>", re.IGNORECASE | re.ASCII)
# Possessive, so that a text that does not match is given up after one scan.
_TRIPLETS = re.compile(r"(?:[0-9]++\.[a-z_]++\.[a-z0-9_-]++(?:,(?!$)|$))*+")
_MANY_DIGITS = 10
_LARGEST_INDEX = 10**9
_ORDER = ["<think>", "</think>", "<answer>", "</answer>"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A well-formed reply: its triplets in the order written. One of them may still be impossible in the scene.

    >>> parse("<think>It turned blue.</think><answer>0.color.blue</answer>").triplets[0].value
    'blue'
    """

    triplets: tuple[Transformation, ...]
    reasoning: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Malformed:
    """A reply that breaks the format, and the first reason found."""

    reason: str


def parse(reply: str) -> Answer | Malformed:
    """Read a reply. Never raises, whatever the text.

    >>> parse("2.color.cyan")
    Malformed(reason='the tags are none; wanted <think>, </think>, <answer>, </answer>, once each')
    """
    tags = list(islice(_TAG.finditer(reply), 6))
    names = [tag.group().lower() for tag in tags]
    if names != _ORDER:
        found = ", ".join(names[:5]) + (", ..." if len(tags) > 5 else "") if names else "none"
        return Malformed(reason=f"the tags are {found}; wanted {', '.join(_ORDER)}, once each")
    opened, closed, answer_opened, answer_closed = tags
    outside = (reply[: opened.start()], reply[closed.end() : answer_opened.start()], reply[answer_closed.end() :])
    if any(text.strip() for text in outside):
        return Malformed(reason="there is text outside the tags")
    triplets = _parse_triplets(reply[answer_opened.end() : answer_closed.start()])
    if isinstance(triplets, Malformed):
        return triplets
    return Answer(triplets=triplets, reasoning=reply[opened.end() : closed.start()].strip())


def format_answer(triplets: tuple[Transformation, ...], reasoning: str) -> str:
    """The reply that `parse` reads back as these triplets."""
    return f"<think> {reasoning} </think> <answer> {', '.join(map(str, triplets))} </answer>"


def _parse_triplets(text: str) -> tuple[Transformation, ...] | Malformed:
    packed = "".join(text.split())
    if packed.isascii():  # else a look-alike could become a letter
        packed = packed.lower()
    if not packed:
        return ()
    readable = _TRIPLETS.match(packed)
    assert readable is not None  # it matches the empty text
    if readable.end() != len(packed):
        return Malformed(reason=f"{packed[readable.end() :].partition(',')[0][:40]!r} is not index.attribute.value")
    items = packed.split(",")
    unique = list(dict.fromkeys(items))  # whole columns at once: a reply of 1 MB has some 80,000 triplets
    columns = ".".join(unique).split(".")
    digits = columns[0::3]
    indices = map(int if max(map(len, digits)) < _MANY_DIGITS else _read_index, digits)
    triplets = map(Transformation._make, zip(indices, columns[1::3], columns[2::3], strict=True))
    if len(unique) == len(items):
        return tuple(triplets)
    read = dict(zip(unique, triplets, strict=True))
    return tuple(map(read.__getitem__, items))


def _read_index(digits: str) -> int:
    """No scene has a billion objects, so larger indices need not be told apart; reading them would not be linear."""
    if len(digits) < _MANY_DIGITS:
        return int(digits)
    return min(_LARGEST_INDEX, int(digits.lstrip("0")[:_MANY_DIGITS] or "0"))
