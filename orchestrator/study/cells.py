"""Runs a study, cell after cell: train by the command `train` or `sft`, ask by `eval`, judge, go on.

Several cells may run side by side, each at a *place* of its own. Each command is a process of its own, so that what a
cell leaks or breaks ends with it, and each goes on where it was stopped. A cell whose result file is there is complete
and never run again. `study.json` and the page are written after every cell.
"""

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import tomli_w

from learner.actor import CHECKPOINTS
from orchestrator.run.directory import RunDirectory
from orchestrator.run.folders import write_whole
from orchestrator.study.config import Cell, StudyConfig, answers_per_step, cell_config, cells
from orchestrator.study.directory import BASE, CellFiles, StudyDirectory, resolved
from orchestrator.study.process import RunCommand, describe_commit, last_lines
from orchestrator.study.progress import StudyState, time_left
from orchestrator.study.results import ArmResult, CellResult, StudyResult, read_cell, summarise_cells
from records.samples import Prompt


class CellFailed(RuntimeError):
    """A command of a cell did not end well; the text is meant for the user."""


class _Stopped(Exception):
    """Ends the command of a cell because another cell failed, or because of Ctrl-C."""


class Study:
    """A *study* in its *directory*, begun; *prompts* are the test pairs, *command* is how a user starts it."""

    def __init__(self, study: StudyConfig, directory: StudyDirectory, prompts: Sequence[Prompt], command: str) -> None:
        self.config = study
        self.directory = directory
        self.command = command
        self._prompts = prompts
        self._cells: dict[str, Cell | None] = {BASE: None} | {cell.name: cell for cell in cells(study)}
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def run(self, places: Sequence[RunCommand], show: Callable[[StudyState], None]) -> StudyResult:
        """Run what is not complete, as many cells at once as there are *places* to run their commands at.

        Raises CellFailed with the first cell that fails; those beside it are stopped, and go on another time.
        """
        waiting = [name for name in self._cells if not self.directory.files(name).result.exists()]
        self._stop.clear()
        with ThreadPoolExecutor(len(places)) as pool:
            work = [
                pool.submit(self._work, waiting, Place(number, len(places), run_command, show))
                for number, run_command in enumerate(places)
            ]
            try:
                for done in as_completed(work):
                    done.result()
            except BaseException:
                self._stop.set()
                raise
        return self.write()

    def _work(self, waiting: list[str], place: "Place") -> None:
        """Run cells at *place* until none is *waiting*."""
        while not self._stop.is_set():
            with self._lock:
                if not waiting:
                    return
                name = waiting.pop(0)
                left = len(waiting)
            _CellRun(self, name, self._cells[name], place, left).run()
            with self._lock:
                self.write()

    def raise_if_stopped(self) -> None:
        if self._stop.is_set():
            raise _Stopped

    def results(self) -> dict[str, CellResult]:
        """Those that are there, by the name of the cell."""
        paths = {name: self.directory.files(name).result for name in self._cells}
        return {name: read_result(path) for name, path in paths.items() if path.exists()}

    def write(self) -> StudyResult:
        """Write study.json and the page, of all cells that are complete."""
        from orchestrator.study.page import write_page  # here, for it brings matplotlib

        result = self._collect()
        write_whole(self.directory.results, result.model_dump_json(indent=1) + "\n")
        write_page(result, self.directory.page)
        return result

    def write_again(self) -> StudyResult:
        """`write`, with every complete cell read once more from its run directory and replies."""
        for name, old in self.results().items():
            self.complete(name, old.seed, date=old.date, commit=old.commit)
        return self.write()

    def complete(self, name: str, seed: int | None, *, date: str, commit: str | None) -> None:
        """Judge the replies, and write the result file."""
        files = self.directory.files(name)
        result = read_cell(
            files.run,
            files.replies,
            self._prompts,
            answers_per_step(self.config),
            read_seconds(files),
            seed=seed,
            date=date,
            commit=commit,
        )
        write_whole(files.result, result.model_dump_json() + "\n")

    def finished_s(self) -> list[float]:
        """Wall seconds of each complete cell, but the base, which is only asked."""
        found = [result.seconds for name, result in self.results().items() if name != BASE]
        return [seconds.training + seconds.set_up + seconds.test for seconds in found]

    @property
    def num_cells(self) -> int:
        return len(self._cells)

    @property
    def num_complete(self) -> int:
        return sum(self.directory.files(name).result.exists() for name in self._cells)

    @property
    def num_pairs(self) -> int:
        return len(self._prompts)

    def _collect(self) -> StudyResult:
        found = self.results()
        arms = []
        for arm in self.config.arms:
            names = [Cell(arm=arm, seed=seed).name for seed in self.config.seeds]
            done = tuple(found[name] for name in names if name in found)
            arms.append(ArmResult(arm=arm, cells=done, summary=summarise_cells(done)))
        return StudyResult(
            command=self.command,
            date=max((result.date for result in found.values()), default=today()),
            commits=tuple(sorted({result.commit for result in found.values() if result.commit})),
            cells_done=len(found),
            cells_total=self.num_cells,
            study=resolved(self.config),
            base=found.get(BASE),
            arms=tuple(arms),
        )


@dataclass(frozen=True, slots=True)
class Place:
    """Where one cell at a time runs: *number* (from 0) of *of*."""

    number: int
    of: int
    run_command: RunCommand
    show: Callable[[StudyState], None]


class _CellRun:
    """One cell, or the base (no *cell*), from wherever it was stopped to its result file; *waiting* come later."""

    def __init__(self, study: Study, name: str, cell: Cell | None, place: Place, waiting: int) -> None:
        self._study = study
        self._name = name
        self._cell = cell
        self._place = place
        self._files = study.directory.files(name)
        self._finished_s = study.finished_s()
        self._turns = waiting / place.of

    def run(self) -> None:
        config, files = self._study.config, self._files
        model, seed = config.model, None
        if self._cell is not None:
            model, seed = files.run / "model", self._cell.seed
            self._train(self._cell)
        longest = str(config.rollout.max_answer_tokens)
        ask = ["eval", "--model", str(model), "--data", str(config.test.path), "--replies", str(files.replies)]
        self._call("test", [*ask, "--max-answer-tokens", longest], "test pairs", files.replies, self._study.num_pairs)
        self._study.complete(self._name, seed, date=today(), commit=describe_commit())
        shutil.rmtree(files.run / CHECKPOINTS, ignore_errors=True)  # three numbers a weight, and nothing goes on

    def _train(self, cell: Cell) -> None:
        files, run = self._files, cell_config(self._study.config, cell)
        if "after" in RunDirectory(files.run).evaluations():
            return
        write_whole(files.run_file, tomli_w.dumps(run.model_dump(mode="json", exclude_none=True)))
        kind = "train" if cell.arm.kind == "rl" else "sft"
        command = [kind, str(files.run_file), "--out", str(files.run), "--resume"]
        self._call("train", command, "step", files.run / "metrics.jsonl", run.loop.steps)

    def _call(self, part: str, command: Sequence[str], what: str, counted: Path, total: int) -> None:
        """Run `star-r1` *command*, its seconds kept under *part*; the lines of *counted* say how far it is."""
        earlier, began = read_seconds(self._files), time.monotonic()

        def tick() -> None:
            self._study.raise_if_stopped()
            now = earlier | {part: earlier.get(part, 0.0) + time.monotonic() - began}
            write_whole(self._files.seconds, json.dumps(now) + "\n")
            elapsed_s = sum(now.values())
            self._place.show(
                StudyState(
                    place=self._place.number,
                    complete=self._study.num_complete,
                    cells=self._study.num_cells,
                    name=self._name,
                    what=what,
                    done=_count_lines(counted),
                    total=total,
                    elapsed_s=elapsed_s,
                    left_s=time_left(self._finished_s, self._turns, elapsed_s),
                )
            )

        tick()
        status = self._place.run_command(
            [sys.executable, "-m", "orchestrator.commands.cli", *command], self._files.log, tick
        )
        tick()
        if status != 0:
            raise CellFailed(
                f"cell {self._name}: `star-r1 {' '.join(command)}` ended with status {status}. The end of "
                f"{self._files.log}:\n{last_lines(self._files.log)}\nMend the cause, then give the same command again: "
                "complete cells are kept, and this one goes on where it was."
            )


def read_result(path: Path) -> CellResult:
    return CellResult.model_validate_json(path.read_text())


def read_seconds(files: CellFiles) -> dict[str, float]:
    """Wall seconds of the cell's commands so far, `train` and `test`, those of killed ones included."""
    return json.loads(files.seconds.read_text()) if files.seconds.exists() else {}


def today() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M")


def _count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
