"""What a person sees of a run: a live line on a terminal, one line a step elsewhere, and the metrics side by side."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from records.task import Task

PLAIN_EVERY_S = 5.0


def say(console: Console, text: str) -> None:
    """One line as it is: rich would take markup and emoji out of the names of files, and break them in two."""
    console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)


class Counter:
    """Shows *done* of *total* from its first call on; off a terminal, a line every few seconds and, but for a *check*,
    one at the end.
    """

    def __init__(self, console: Console, what: str, progress: Progress | None, check: bool) -> None:
        self._console = console
        self._what = what
        self._progress = progress
        self._check = check
        self._task: TaskID | None = None
        self._said = time.monotonic()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        if self._progress is not None:
            if self._task is None:
                self._task = self._progress.add_task(self._what, total=total, note=note)
            self._progress.update(self._task, completed=done, total=total, note=note)
        elif time.monotonic() - self._said > PLAIN_EVERY_S or (done == total and not self._check):
            self._said = time.monotonic()
            self._console.print(f"{self._what}: {done} of {total} {note}".rstrip(), highlight=False)


@contextmanager
def counting(console: Console, what: str, check: bool = False) -> Iterator[Counter]:
    """A progress bar on a terminal, lines elsewhere. That of a *check* is soon done, and leaves nothing."""
    if not console.is_terminal:
        yield Counter(console, what, None, check)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=check) as progress:
        yield Counter(console, what, progress, check)


def step_line(row: dict[str, float], steps: int, left_s: float, shares: Sequence[str]) -> str:
    """One line for people: step, version, reward, the first of *shares* and staleness if there are any, loss, speed,
    time left.
    """
    share = "".join(f"{name} {row[name]:.0%}  " for name in shares[:1] if name in row)
    left = f"{int(left_s) // 60}:{int(left_s) % 60:02}"
    sampled = f"reward {row['reward']:+.2f}  {share}staleness {row['staleness']:.1f}  " if "reward" in row else ""
    return (
        f"step {row['step']:>3.0f}/{steps}  version {row['version']:>3.0f}  {sampled}loss {row['loss']:+.4f}  "
        f"{row['tokens_per_s']:,.0f} tokens/s  {row['step_s']:.1f} s  left {left}"
    )


def live_note(row: dict[str, float]) -> str:
    """What stands beside the bar, which itself counts the steps and the time left."""
    sampled = f"reward {row['reward']:+.2f}  staleness {row['staleness']:.1f}" if "reward" in row else ""
    learned = sampled or f"loss {row['loss']:+.4f}"
    return f"version {row['version']:.0f}  {learned}  {row['tokens_per_s']:,.0f} tokens/s"


def metrics_table(task: Task, reports: Mapping[str, Mapping[str, Any]]) -> Table:
    """The metrics of *task* and their breakdowns, one column for each of its *reports*."""
    table = Table(title="Greedy answers to held-out prompts")
    table.add_column("metric")
    for name in reports:
        table.add_column(name, justify="right")
    for name, values in task.table(list(reports.values())):
        table.add_row(name, *("-" if value is None else f"{value:.3f}".rstrip("0").rstrip(".") for value in values))
    for part in dict.fromkeys(part for report in reports.values() for part in report.get("reward", ())):
        name = "reward" if part == "total" else f"reward, {part}"
        table.add_row(name, *(f"{report['reward'].get(part, 0.0):+.3f}" for report in reports.values()))
    return table


def reward_table(rows: Sequence[Mapping[str, float]], window: int = 10) -> Table:
    """Mean reward and each of its parts over the first and the last *window* steps; a part without a column is 0."""
    window = min(window, len(rows))
    table = Table(title="Reward of sampled answers")
    for column in ("part", f"first {window}", f"last {window}", "change"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for key in ("reward", *sorted({key for row in rows for key in row if key.startswith("reward/")})):
        first, last = (sum(row.get(key, 0.0) for row in part) / window for part in (rows[:window], rows[-window:]))
        name = "total" if key == "reward" else key.removeprefix("reward/")
        table.add_row(name, f"{first:+.3f}", f"{last:+.3f}", f"{last - first:+.3f}")
    return table
