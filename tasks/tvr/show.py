"""Replies to a pair on a terminal: what is right in them, what is wrong and what is missing."""

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from records.task import printable
from tasks.tvr.language.answer import parse
from tasks.tvr.language.gold import Gold
from tasks.tvr.language.metrics import judge
from tasks.tvr.language.reading import read_reply, true_changes

MOST_TRIPLETS = 8


def show_replies(gold: Gold, replies: Mapping[str, str]) -> Table:
    """The true changes and *replies* by name, each with a mark: its triplets, applied, reach the true final state."""
    grid = Table.grid(padding=(0, 1))
    for _ in range(3):
        grid.add_column(overflow="fold")
    grid.add_row("  true", "", true_changes(gold))
    for name, reply in replies.items():
        grid.add_row(f"  {name}", _mark(judge(parse(reply), gold, num_tokens=None).acc), show_reply(reply, gold))
    return grid


def show_reply(reply: str, gold: Gold) -> Text:
    """Reasoning and triplets, each of these marked, and the true changes that are missing; a malformed one as it is."""
    read = read_reply(reply, gold)
    if read.malformed is not None:
        shown = Text.assemble((f"malformed: {printable(read.malformed)}\n", "red"), printable(reply))
    else:
        marked = [Text.assemble(f"{printable(claim.text)} ", _mark(claim.right)) for claim in read.claims]
        if len(marked) > MOST_TRIPLETS:
            cut = Text(f"... {len(marked) - MOST_TRIPLETS} more ...")
            marked = [*marked[: MOST_TRIPLETS // 2], cut, *marked[-MOST_TRIPLETS // 2 :]]
        answer = Text(", ").join(marked) if marked else Text("no change")
        shown = Text.assemble(f"<think> {printable(read.reasoning)} </think>\n<answer> ", answer, " </answer>")
    return shown.append(f"\nmissing: {', '.join(read.missing)}", "red") if read.missing else shown


def _mark(right: bool | None) -> Text:
    return Text("✓", style="green") if right else Text("✗", style="red")
