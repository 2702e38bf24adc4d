"""Reply text to `Answer` or `Malformed`: the only parser in the project.

A reply is `<think> reasoning </think> <answer> triplets </answer>`; triplets are `index.attribute.value`, separated by
commas. White space and letter case do not matter, and an empty answer means "no change". The scan is linear in the
length of the reply, and no text makes it raise.
"""

import re
from dataclasses import dataclass

from tvr.scene import Transformation

_TAG = re.compile(r"<(/?)(think|answer)>", re.IGNORECASE)
_TRIPLET = re.compile(r"([0-9]{1,9})\.([a-z]{1,32})\.([a-z]{1,32})", re.ASCII)
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
    tags = list(_TAG.finditer(reply))
    names = [tag.group().lower() for tag in tags[:5]]
    if names != _ORDER:
        found = ", ".join(names) + (", ..." if len(tags) > 5 else "") if names else "none"
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
    packed = "".join(text.split()).lower()
    if not packed:
        return ()
    triplets = []
    for item in packed.split(","):
        match = _TRIPLET.fullmatch(item)
        if match is None:
            return Malformed(reason=f"{item[:40]!r} is not index.attribute.value")
        index, attribute, value = match.groups()
        triplets.append(Transformation(index=int(index), attribute=attribute, value=value))
    return tuple(triplets)
