"""The reply parser meets anything: a million damaged replies, random text, and a second reader of the grammar.

The second reader is written from the grammar alone, slowly: each tag once and in order, nothing but white space outside
them, and comma-separated `digits.word.word` between the answer tags; white space and ASCII case do not matter.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.tvr.language.answer import Answer, Malformed, format_answer, parse
from tasks.tvr.language.scene import Transformation

NUM_MUTANTS = 1_000_000
NUM_COMPARED = 20_000
BATCH = 1000
LARGEST_INDEX = 10**9
"""From here on, indices need not be told apart."""

TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
DIGITS = set("0123456789")
ATTRIBUTE_LETTERS = set("abcdefghijklmnopqrstuvwxyz_")
VALUE_LETTERS = ATTRIBUTE_LETTERS | DIGITS | {"-"}
ASCII_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}
ASCII_SWAPPED = ASCII_LOWER | {code + 32: code for code in ASCII_LOWER}

SPACES = ["", "", " ", " ", "\n", "\t", "  \n", "\r\n", "\x0b", "\x1d", "\x85", "\u00a0", "\u2003", "\u2028", "\u3000"]
THOUGHTS = [
    "",
    "It turned red.",
    "one by one",
    "0.color.red",
    "a < b > c",
    "</ think>",
    "answer",
    "\u601d\u8003",
    "<b>",
]
WORDS = [
    *["color.red", "color.cyan", "shape.cube", "size.large", "material.glass", "position.front-left-2"],
    *["weight.heavy", "COLOR.Blue", "co_lor.x-1", "a.9", f"{'w' * 32}.{'v' * 32}"],
]
INDICES = ["0", "1", "2", "3", "9", "10", "007", "999999999", "1000000000", "9" * 30]
WHOLE_PARTS = [
    *TAGS,
    *(tag.upper() for tag in TAGS),
    *["<answer>0.color.red</answer>", "<think>x</think>", "<think><answer></answer></think>", "<think></think>"],
    *["0.color.red", ",0.color.red", "1.size.small,", "0.color", ".", ",", ",,", "..", "-1.color.red", "0.color.red.x"],
    *["<", ">", "</", "<think", "think>", "< think>", "<think/>", "<<think>>", "<answers>", "</answer >", "nothing"],
]
LOOKALIKES = [
    *["\uff10.color.red", "\uff1cthink\uff1e", "<thin\u212a>", "<an\u017fwer>", "<th\u0131nk>", "<\u0430nswer>"],
    *[
        "0.c\u043elor.red",
        "0\uff0ecolor\uff0ered",
        "0.color.red\uff0c1.size.large",
        "\u00b2",
        "\u0661",
        "\u0130",
        "\u212a",
    ],
]
STRANGERS = [
    *["\x00", "\x07", "\x1b[31m", "\x7f", "\ud800", "\udfff", "\udc80\ud800", "\u200b", "\ufeff", "\u202e", "\u0301"],
    *["\U0001f600", "9" * 400, "0" * 60 + "5", "x" * 33, "w" * 32, "\\", "\"'`", "%s{}", "&lt;think&gt;"],
]
FRAGMENTS = [*WHOLE_PARTS, *LOOKALIKES, *STRANGERS, *filter(None, SPACES * 6)]

Edit = Callable[[list[str], int, str], None]
"""Changes the parts of a reply in place, at a place (any number), with or without a fragment."""


# The mutator.


def _delete(parts: list[str], at: int, fragment: str) -> None:
    at %= len(parts) + 1
    del parts[at : at + 1]


def _cut(parts: list[str], at: int, fragment: str) -> None:
    del parts[at % (len(parts) + 1) :]


def _insert(parts: list[str], at: int, fragment: str) -> None:
    parts.insert(at % (len(parts) + 1), fragment)


def _duplicate(parts: list[str], at: int, fragment: str) -> None:
    at %= len(parts) + 1
    parts[at:at] = parts[at : at + 2]


def _swap(parts: list[str], at: int, fragment: str) -> None:
    at %= len(parts) + 1
    parts[at : at + 2] = reversed(parts[at : at + 2])


def _replace(parts: list[str], at: int, fragment: str) -> None:
    at %= len(parts) + 1
    parts[at : at + 1] = [fragment]


def _split(parts: list[str], at: int, fragment: str) -> None:
    """Put the fragment into the middle of a part."""
    at %= len(parts) + 1
    for part in parts[at : at + 1]:
        middle = len(part) // 2
        parts[at] = part[:middle] + fragment + part[middle:]


def _change_case(parts: list[str], at: int, fragment: str) -> None:
    at %= len(parts) + 1
    parts[at : at + 1] = [part.swapcase() for part in parts[at : at + 1]]


def _nest(parts: list[str], at: int, fragment: str) -> None:
    """Put the reply, up to here, into itself."""
    at %= len(parts) + 1
    parts[at:at] = parts[:at]


EDITS: list[Edit] = [
    *[_insert, _split, _change_case] * 3,
    *[_delete, _cut, _duplicate, _swap, _replace, _nest],
]


def true_reply(rng: random.Random) -> list[str]:
    """The parts of a well-formed reply."""
    space = rng.choice(SPACES)
    parts = [space, "<think>", rng.choice(THOUGHTS), "</think>", space, "<answer>", space]
    for place in range(rng.choice([0, 1, 1, 2, 2, 3, 4])):
        parts += [",", space] if place else []
        parts += [rng.choice(INDICES), ".", *rng.choice(WORDS).partition("."), space]
    return [*parts, "</answer>", space]


@cache
def true_replies() -> list[list[str]]:
    rng = random.Random("true replies")
    return [true_reply(rng) for _ in range(10_000)]


def mutants(seed: str, count: int) -> Iterator[str]:
    """True replies with 1 to 3 edits. The choices are drawn a batch at a time, for speed."""
    rng = random.Random(seed)
    for _ in range(count // BATCH):
        depths = rng.choices((1, 1, 1, 2, 2, 3), k=BATCH)
        edits = rng.choices(EDITS, k=3 * BATCH)
        places = rng.choices(range(840), k=3 * BATCH)
        fragments = rng.choices(FRAGMENTS, k=3 * BATCH)
        choices = zip(edits, places, fragments, strict=True)
        for base, depth in zip(rng.choices(true_replies(), k=BATCH), depths, strict=True):
            parts = base.copy()
            for _ in range(depth):
                edit, place, fragment = next(choices)
                edit(parts, place, fragment)
            yield "".join(parts)


# The second reader.


def read_slowly(reply: str) -> list[tuple[int, str, str]] | str:
    """The triplets of a well-formed reply, or which rule it breaks: tags, outside or triplets."""
    text = reply.translate(ASCII_LOWER)
    places = [text.find(tag) for tag in TAGS]
    if [text.count(tag) for tag in TAGS] != [1, 1, 1, 1] or places != sorted(places):
        return "tags"
    opened, closed, answer_opened, answer_closed = places
    outside = text[:opened] + text[closed + len(TAGS[1]) : answer_opened] + text[answer_closed + len(TAGS[3]) :]
    if not all(character.isspace() for character in outside):
        return "outside"
    inside = text[answer_opened + len(TAGS[2]) : answer_closed]
    packed = "".join(character for character in inside if not character.isspace())
    triplets = [read_triplet(item) for item in packed.split(",")] if packed else []
    return "triplets" if None in triplets else triplets


def read_triplet(text: str) -> tuple[int, str, str] | None:
    parts = text.split(".")
    if len(parts) != 3 or not all(parts):
        return None
    digits, attribute, value = parts
    if not (set(digits) <= DIGITS and set(attribute) <= ATTRIBUTE_LETTERS and set(value) <= VALUE_LETTERS):
        return None
    return min(int(digits), LARGEST_INDEX), attribute, value


def assert_the_readers_agree(reply: str) -> None:
    slow, fast = read_slowly(reply), parse(reply)
    if isinstance(slow, str):
        assert isinstance(fast, Malformed), (slow, reply)
        assert fast.reason
    else:
        assert isinstance(fast, Answer), reply
        assert list(map(tuple, fast.triplets)) == slow, reply


def same_triplets(one: Answer | Malformed, other: Answer | Malformed) -> bool:
    if isinstance(one, Answer) and isinstance(other, Answer):
        return one.triplets == other.triplets
    return type(one) is type(other)


def spaced(reply: str, space: str) -> str:
    """A well-formed reply with white space around every token of its answer."""
    text = reply.translate(ASCII_LOWER)
    start, end = text.index("<answer>") + len("<answer>"), text.index("</answer>")
    inside = reply[start:end].replace(".", f"{space}.{space}").replace(",", f"{space},{space}")
    return f"{reply[:start]}{space}{inside}{space}{reply[end:]}"


@pytest.fixture(scope="module")
def compared() -> list[str]:
    return list(mutants("compared", NUM_COMPARED))


@pytest.mark.slow
def test_a_million_damaged_replies_are_each_an_answer_or_malformed_with_a_reason():
    kinds = Counter()
    for reply in mutants("a million", NUM_MUTANTS):
        answer = parse(reply)
        kinds[type(answer)] += 1
        if type(answer) is Malformed:
            assert answer.reason
    assert set(kinds) == {Answer, Malformed}
    assert kinds.total() == NUM_MUTANTS
    assert min(kinds.values()) > NUM_MUTANTS // 5  # else the damage would be too weak, or too strong, to tell much


def test_two_readers_of_the_grammar_agree_on_damaged_replies(compared):
    for reply in compared:
        assert_the_readers_agree(reply)


def test_damaged_replies_break_every_rule(compared):
    verdicts = Counter(verdict if isinstance(verdict, str) else "none" for verdict in map(read_slowly, compared))
    assert set(verdicts) == {"none", "tags", "outside", "triplets"}
    assert min(verdicts.values()) > NUM_COMPARED // 50


def test_the_triplets_of_a_damaged_reply_are_read_back_as_written(compared):
    for answer in map(parse, compared):
        if isinstance(answer, Answer) and all(triplet.index < LARGEST_INDEX for triplet in answer.triplets):
            assert parse(format_answer(answer.triplets, "x")) == Answer(triplets=answer.triplets, reasoning="x")


def test_ascii_case_does_not_matter_in_any_reply(compared):
    for reply in compared:
        assert same_triplets(parse(reply), parse(reply.translate(ASCII_SWAPPED))), reply


def test_white_space_between_the_tokens_of_an_answer_does_not_matter(compared):
    rng = random.Random("spaces")
    for reply in compared:
        if isinstance(answer := parse(reply), Answer):
            assert same_triplets(answer, parse(spaced(reply, rng.choice(SPACES)))), reply


@pytest.mark.parametrize("space", sorted(set(SPACES)))
def test_every_kind_of_white_space_goes_with_every_case(space):
    reply = f"<think></think><answer>{space}0{space}.{space}COLOR.{space}Red{space}</answer>{space}"
    assert parse(reply) == Answer(triplets=(Transformation(0, "color", "red"),), reasoning="")


@pytest.mark.parametrize("character", ["\u200b", "\ufeff", "\u00ad", "\u180e", "\x00", "\x1b", "\u0301", "\ud800"])
def test_what_is_invisible_is_not_white_space(character):
    assert isinstance(parse(f"<think></think><answer>0.color.red{character}</answer>"), Malformed)
    assert isinstance(parse(f"<think></think>{character}<answer>0.color.red</answer>"), Malformed)
    assert isinstance(parse(f"<think>{character}</think><answer>0.color.red</answer>"), Answer)


def test_tags_in_every_order_are_malformed_but_in_one():
    for order in product(TAGS, repeat=4):
        assert isinstance(parse("".join(order)), Answer) == (list(order) == TAGS), order


parts_of_replies = st.sampled_from([*FRAGMENTS, *INDICES, *(word for pair in WORDS for word in pair.split("."))])


@settings(max_examples=1000, deadline=None)
@given(st.text())
def test_two_readers_agree_on_any_text(text):
    assert_the_readers_agree(text)


@settings(max_examples=1000, deadline=None)
@given(st.lists(parts_of_replies | st.text(max_size=4), max_size=10).map("".join))
def test_two_readers_agree_on_any_answer(inside):
    assert_the_readers_agree(f"<think></think><answer>{inside}</answer>")


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.sampled_from(TAGS) | parts_of_replies, max_size=12).map("".join))
def test_two_readers_agree_on_any_order_of_parts(reply):
    assert_the_readers_agree(reply)


LONG = 1_000_000


@pytest.mark.parametrize("unit", ["<", "<think>", "<answer>", "0.color.red,", ",", ".", "9", "1.", "a.", " ", "\u3000"])
def test_a_megabyte_of_one_thing_is_read(unit):
    """A quadratic scan would take minutes; `tests/bench/parser.py` measures what this takes."""
    text = unit * (LONG // len(unit))
    for reply in (text, f"<think>{text}</think><answer></answer>", f"<think></think><answer>{text}</answer>"):
        assert isinstance(parse(reply), Answer | Malformed)
