"""What a run says at its end, from what it leaves in its directory: tables, curves, and some held-out pairs."""

from collections.abc import Sequence

from rich.console import Console

from orchestrator.display import metrics_table, reward_table
from orchestrator.report.curves import WIDTH, loss_curve, reward_curve, shares_curve
from orchestrator.report.held_out_pairs import choose_pairs, show_pair
from orchestrator.run.directory import RunDirectory
from orchestrator.run.metrics import read_rows
from tvr.records import Prompt


def show_training(console: Console, directory: RunDirectory, held_out: Sequence[Prompt]) -> None:
    """Of reinforcement learning: metrics, reward, their curves, and pairs before and after."""
    rows, width = read_rows(directory.metrics), min(WIDTH, console.width)
    _show_metrics(console, directory)
    console.print(reward_table(rows))
    console.print(reward_curve(rows, width))
    console.print(shares_curve(rows, held_out_accuracy(directory), width))
    _show_pairs(console, directory, held_out)


def show_imitation(console: Console, directory: RunDirectory, held_out: Sequence[Prompt]) -> None:
    """Of the supervised baseline: metrics, loss, and pairs before and after."""
    _show_metrics(console, directory)
    console.print(loss_curve(read_rows(directory.metrics), min(WIDTH, console.width)))
    _show_pairs(console, directory, held_out)


def held_out_accuracy(directory: RunDirectory) -> list[tuple[float, float]]:
    """Version and TAcc of every evaluation, the first and the last ones too; empty if there was none between them.

    An evaluation beside training is answered by more than one version, and stands at the oldest.
    """
    found = directory.evaluations()
    if found.keys() <= {"before", "after"}:
        return []
    return sorted((evaluation["versions"][0], evaluation["metrics"]["TAcc"]) for evaluation in found.values())


def _show_metrics(console: Console, directory: RunDirectory) -> None:
    if reports := directory.reports("before", "after"):
        console.print(metrics_table(reports))


def _show_pairs(console: Console, directory: RunDirectory, held_out: Sequence[Prompt]) -> None:
    pairs = choose_pairs(held_out, directory.replies("before"), directory.replies("after"))
    if pairs:
        console.print("Held-out pairs, before and after")
    for pair in pairs:
        console.print(show_pair(pair))
