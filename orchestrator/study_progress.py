"""How far a study is: one bar on a terminal, elsewhere a line now and then."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

PLAIN_EVERY_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyState:
    """Cell number *cell* (from 1) of *cells* is at *done* of *total* of *what* (steps, pairs) since *elapsed_s*."""

    cell: int
    cells: int
    name: str
    what: str
    done: int
    total: int
    elapsed_s: float
    left_s: float | None

    def describe(self) -> str:
        left = "unknown" if self.left_s is None else clock(self.left_s)
        return f"{self.what} {self.done:,} of {self.total:,}, {clock(self.elapsed_s)}, left {left}"


def time_left(finished_s: Sequence[float], waiting: int, elapsed_s: float) -> float | None:
    """Seconds until the study ends, if its cells take as long as the *finished* ones did in the mean; None at first.

    *waiting* cells have not begun, and the present one began *elapsed_s* ago.
    """
    if not finished_s:
        return None
    mean_s = sum(finished_s) / len(finished_s)
    return mean_s * waiting + max(0.0, mean_s - elapsed_s)


def clock(seconds: float) -> str:
    """
    >>> clock(3725)
    '1:02:05'
    """
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


class StudyDisplay:
    """Shows states for as long as it is entered."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = ("", "", 0.0)  # cell, what, when
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=console)
        self._task = self._bar.add_task("cells", total=None, note="")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def __call__(self, state: StudyState) -> None:
        if self._console.is_terminal:
            note = f"{state.name}: {state.describe()}"
            self._bar.update(self._task, completed=state.cell - 1, total=state.cells, note=note)
            return
        name, what, when = self._said
        if (name, what) != (state.name, state.what) or time.monotonic() - when > PLAIN_EVERY_S:
            self._said = (state.name, state.what, time.monotonic())
            line = f"cell {state.cell} of {state.cells}, {state.name}: {state.describe()}"
            self._console.print(line, highlight=False, soft_wrap=True)
