"""Replies to a pair on a terminal: what is right in them, what is wrong and what is missing."""

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from records.task import printable
from tasks.tvr.language.answer import Malformed, parse
from tasks.tvr.language.gold import Gold
from tasks.tvr.language.metrics import judge
from tasks.tvr.language.scene import Transformation

MOST_TRIPLETS = 8


def show_replies(gold: Gold, replies: Mapping[str, str]) -> Table:
    """The true changes and *replies* by name, each with a mark: its triplets, applied, reach the true final state."""
    grid = Table.grid(padding=(0, 1))
    for _ in range(3):
        grid.add_column(overflow="fold")
    grid.add_row("  true", "", ", ".join(map(str, gold.changes)) or "no change")
    for name, reply in replies.items():
        grid.add_row(f"  {name}", _mark(judge(parse(reply), gold, num_tokens=None).acc), show_reply(reply, gold))
    return grid


def show_reply(reply: str, gold: Gold) -> Text:
    """Reasoning and triplets, each of these marked, and the true changes that are missing; a malformed one as it is.

    A triplet is right if it is a true change that no earlier one has named.
    """
    read = parse(reply)
    if isinstance(read, Malformed):
        shown = Text.assemble((f"malformed: {printable(read.reason)}\n", "red"), printable(reply))
        missing = list(gold.changes)
    else:
        marked, missing = _mark_triplets(read.triplets, gold.changes)
        if len(marked) > MOST_TRIPLETS:
            cut = Text(f"... {len(marked) - MOST_TRIPLETS} more ...")
            marked = [*marked[: MOST_TRIPLETS // 2], cut, *marked[-MOST_TRIPLETS // 2 :]]
        answer = Text(", ").join(marked) if marked else Text("no change")
        shown = Text.assemble(f"<think> {printable(read.reasoning)} </think>\n<answer> ", answer, " </answer>")
    return shown.append(f"\nmissing: {', '.join(map(str, missing))}", "red") if missing else shown


def _mark_triplets(
    triplets: Sequence[Transformation], changes: Sequence[Transformation]
) -> tuple[list[Text], list[Transformation]]:
    """The *triplets*, marked, and the *changes* that are not among them."""
    marked, missing = [], list(changes)
    for triplet in triplets:
        right = triplet in missing
        if right:
            missing.remove(triplet)
        marked.append(Text.assemble(f"{printable(str(triplet))} ", _mark(right)))
    return marked, missing


def _mark(right: bool) -> Text:
    return Text("✓", style="green") if right else Text("✗", style="red")
