"""How far a study is: a bar for all cells and one for each that runs on a terminal, elsewhere a line now and then."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

PLAIN_EVERY_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyState:
    """The cell *name*, at a *place*, is at *done* of *total* of *what* (steps, pairs) after *elapsed_s*; *complete* of
    all *cells* are complete."""

    place: int
    complete: int
    cells: int
    name: str
    what: str
    done: int
    total: int
    elapsed_s: float
    left_s: float | None

    @property
    def left(self) -> str:
        return f"left {'unknown' if self.left_s is None else clock(self.left_s)}"

    def describe(self) -> str:
        done = f"{self.complete} of {self.cells} cells complete"
        return f"{self.name}: {self.what} {self.done:,} of {self.total:,}, {clock(self.elapsed_s)}; {done}, {self.left}"


def time_left(finished_s: Sequence[float], turns: float, elapsed_s: float) -> float | None:
    """Seconds until the study ends, if its cells take as long as the *finished* ones did in the mean; None at first.

    The present cell began *elapsed_s* ago, and *turns* cells come after it at each place.
    """
    if not finished_s:
        return None
    mean_s = sum(finished_s) / len(finished_s)
    return mean_s * turns + max(0.0, mean_s - elapsed_s)


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
        self._said: dict[int, tuple[str, str, float]] = {}  # by place: cell, what, when
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=console)
        self._all = self._bar.add_task("cells", total=None, note="")
        self._tasks: dict[int, TaskID] = {}

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def __call__(self, state: StudyState) -> None:
        if self._console.is_terminal:
            if state.place not in self._tasks:
                self._tasks[state.place] = self._bar.add_task("", total=None, note="")
            note = f"{state.what}, {clock(state.elapsed_s)}"
            self._bar.update(self._all, completed=state.complete, total=state.cells, note=state.left)
            self._bar.update(
                self._tasks[state.place], description=state.name, completed=state.done, total=state.total, note=note
            )
            return
        name, what, when = self._said.get(state.place, ("", "", 0.0))
        if (name, what) != (state.name, state.what) or time.monotonic() - when > PLAIN_EVERY_S:
            self._said[state.place] = (state.name, state.what, time.monotonic())
            self._console.print(state.describe(), highlight=False, soft_wrap=True)
