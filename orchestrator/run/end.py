"""What a run says at its end, from what it leaves in its directory: tables, curves, and some held-out prompts."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from orchestrator.display import metrics_table, reward_table
from orchestrator.report.curves import WIDTH, loss_curve, reward_curve, shares_curve
from orchestrator.report.held_out import choose_prompts, show_prompt
from orchestrator.run.directory import RunDirectory
from orchestrator.run.metrics import read_rows
from orchestrator.run.page import leave_page
from records.samples import Prompt
from records.task import Task


def show_training(console: Console, task: Task, directory: RunDirectory, held_out: Sequence[Prompt]) -> None:
    """Of reinforcement learning: metrics, reward, their curves, and prompts before and after."""
    rows, width = read_rows(directory.metrics), min(WIDTH, console.width)
    _show_metrics(console, task, directory)
    console.print(reward_table(rows))
    console.print(reward_curve(rows, width))
    points = held_out_shares(task, directory)
    if task.shares or points:
        console.print(shares_curve(rows, task.shares, points, task.headline, width))
    _show_prompts(console, task, directory, held_out)
    leave_page(directory.path)


def show_imitation(console: Console, task: Task, directory: RunDirectory, held_out: Sequence[Prompt]) -> None:
    """Of the supervised baseline: metrics, loss, and prompts before and after."""
    _show_metrics(console, task, directory)
    console.print(loss_curve(read_rows(directory.metrics), min(WIDTH, console.width)))
    _show_prompts(console, task, directory, held_out)
    leave_page(directory.path)


def held_out_shares(task: Task, directory: RunDirectory) -> list[tuple[float, float]]:
    """Version and headline of every evaluation, the first and the last ones too; empty if there was none between them,
    or the task has no headline.

    An evaluation beside training is answered by more than one version, and stands at the oldest.
    """
    found = directory.evaluations()
    if task.headline is None or found.keys() <= {"before", "after"}:
        return []
    return sorted((evaluation["versions"][0], evaluation["metrics"][task.headline]) for evaluation in found.values())


def _show_metrics(console: Console, task: Task, directory: RunDirectory) -> None:
    found = directory.evaluations()
    reports: dict[str, Any] = {name: found[name] for name in ("before", "after") if name in found}
    if reports:
        console.print(metrics_table(task, reports))


def _show_prompts(console: Console, task: Task, directory: RunDirectory, held_out: Sequence[Prompt]) -> None:
    before, after = directory.replies("before"), directory.replies("after")
    prompts = choose_prompts(task, held_out, before, after)
    if prompts:
        console.print("Held-out prompts, before and after")
    for prompt in prompts:
        console.print(show_prompt(task, prompt, before, after))
