"""What training changed in single held-out pairs: which of them are worth a look, and how these are shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from tvr.language.answer import Answer, Malformed, parse
from tvr.language.metrics import judge
from tvr.language.scene import Transformation
from tvr.records import Gold, Prompt

MOST_CHARACTERS = 300
MOST_TRIPLETS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedReply:
    """A reply as read; *right*: its triplets, applied, reach exactly the true final state."""

    text: str
    answer: Answer | Malformed
    right: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class RepliedPair:
    """A held-out pair with the replies before and after training; *view* is the camera of the final picture."""

    id: str
    view: str
    gold: Gold
    before: JudgedReply
    after: JudgedReply


def choose_pairs(
    prompts: Sequence[Prompt], before: Mapping[str, str], after: Mapping[str, str], count: int = 3
) -> list[RepliedPair]:
    """*count* of the *prompts* that have a reply, by id, *before* and *after*; fewer if there are no more.

    Pairs that were wrong and became right, but for one place; then those that stayed wrong, so that one sees what is
    left; then any. Each time the first in a view that is not yet among them, or else the first. The same arguments give
    the same pairs.
    """
    pairs = [
        RepliedPair(
            id=prompt.id,
            view=prompt.pair.view,
            gold=prompt.gold,
            before=_read(before[prompt.id], prompt),
            after=_read(after[prompt.id], prompt),
        )
        for prompt in prompts
        if prompt.id in before and prompt.id in after
    ]

    def which(right_before: bool, right_after: bool) -> list[RepliedPair]:
        return [pair for pair in pairs if (pair.before.right, pair.after.right) == (right_before, right_after)]

    became_right, stayed_wrong = which(False, True), which(False, False)
    chosen = _different_views([], became_right, count - 1)
    for candidates in (stayed_wrong, became_right, which(True, False), which(True, True)):
        chosen = _different_views(chosen, candidates, count)
    return chosen


def show_pair(pair: RepliedPair) -> Group:
    """Its true changes and both replies: what is right in them, what is wrong and what is missing."""
    grid = Table.grid(padding=(0, 1))
    for _ in range(3):
        grid.add_column(overflow="fold")
    grid.add_row("  true", "", ", ".join(map(str, pair.gold.changes)) or "no change")
    for when, reply in (("before", pair.before), ("after", pair.after)):
        grid.add_row(f"  {when}", _mark(reply.right), show_reply(reply, pair.gold))
    return Group(Text(pair.id, style="bold"), grid)


def show_reply(reply: JudgedReply, gold: Gold) -> Text:
    """Reasoning and triplets, each of these marked, and the true changes that are missing; a malformed one as it is.

    A triplet is right if it is a true change that no earlier one has named.
    """
    if isinstance(reply.answer, Malformed):
        shown = Text.assemble((f"malformed: {shorten(reply.answer.reason)}\n", "red"), shorten(reply.text))
        missing = list(gold.changes)
    else:
        marked, missing = _mark_triplets(reply.answer.triplets, gold.changes)
        if len(marked) > MOST_TRIPLETS:
            cut = Text(f"... {len(marked) - MOST_TRIPLETS} more ...")
            marked = [*marked[: MOST_TRIPLETS // 2], cut, *marked[-MOST_TRIPLETS // 2 :]]
        answer = Text(", ").join(marked) if marked else Text("no change")
        shown = Text.assemble(f"<think> {shorten(reply.answer.reasoning)} </think>\n<answer> ", answer, " </answer>")
    return shown.append(f"\nmissing: {', '.join(map(str, missing))}", "red") if missing else shown


def shorten(text: str) -> str:
    """On one line, without characters that a terminal would obey, and without the middle if it is long."""
    line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(text.split()))
    half = MOST_CHARACTERS // 2
    return line if len(line) <= MOST_CHARACTERS else f"{line[:half]} ... {line[-half:]}"


def _read(text: str, prompt: Prompt) -> JudgedReply:
    answer = parse(text)
    right = judge(answer, prompt.gold, view=prompt.pair.view, num_tokens=None).acc
    return JudgedReply(text=text, answer=answer, right=right)


def _different_views(chosen: list[RepliedPair], candidates: list[RepliedPair], count: int) -> list[RepliedPair]:
    """*chosen* and so many *candidates* that they are *count*, if there are."""
    chosen, left = list(chosen), [pair for pair in candidates if pair not in chosen]
    while left and len(chosen) < count:
        views = {pair.view for pair in chosen}
        chosen.append(next((pair for pair in left if pair.view not in views), left[0]))
        left.remove(chosen[-1])
    return chosen


def _mark_triplets(
    triplets: Sequence[Transformation], changes: Sequence[Transformation]
) -> tuple[list[Text], list[Transformation]]:
    """The *triplets*, marked, and the *changes* that are not among them."""
    marked, missing = [], list(changes)
    for triplet in triplets:
        right = triplet in missing
        if right:
            missing.remove(triplet)
        marked.append(Text.assemble(f"{shorten(str(triplet))} ", _mark(right)))
    return marked, missing


def _mark(right: bool) -> Text:
    return Text("✓", style="green") if right else Text("✗", style="red")
