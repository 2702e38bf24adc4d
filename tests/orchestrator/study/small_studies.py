"""Studies for tests: small study files, and cells as their commands would leave them behind."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w

from orchestrator.study.config import Cell, StudyConfig, cells, load_study_config
from orchestrator.study.directory import BASE, StudyDirectory
from orchestrator.study.results import (
    CHANGED_VIEW,
    HALF_GAIN,
    SAME_VIEW,
    CellResult,
    Seconds,
    TrainingPoint,
    ValidationPoint,
)
from records.samples import Prompt
from tasks.tvr.language.answer import format_answer
from tasks.tvr.language.metrics import METRICS
from tasks.tvr.language.scene import VIEWS

SHIPPED = Path("deploy/runs/study.toml")
ANSWER = "<think> </think> <answer> </answer>"


def write_study(path: Path, **changes: Any) -> Path:
    """The shipped study file with 60 steps and with *changes* of `section__key`, written to *path*."""
    content = load_study_config(SHIPPED).model_dump(mode="json", exclude_none=True)
    content["loop"]["steps"] = 60
    del content["reward_service"]["rule"]
    content["learner"].pop("imitation", None)
    for key, value in changes.items():
        *sections, last = key.split("__")
        table = content
        for section in sections:
            table = table[section]
        table[last] = value
    path.write_text(tomli_w.dumps(content))
    return path


def arm(name: str, role: str) -> dict[str, str]:
    """As a study file has it; *role* is a rule or what is imitated."""
    kind, key = ("sft", "imitation") if role in ("answer", "reasoning") else ("rl", "rule")
    return {"name": name, "kind": kind, key: role}


class FakeCommands:
    """Runs no command, but leaves behind what a good one would; *calls* has each as `train NAME` or `eval NAME`.

    A cell in *failing* ends with status 1 after a word to its log.
    """

    def __init__(self, prompts: Sequence[Prompt], failing: Sequence[str] = ()) -> None:
        self.calls: list[str] = []
        self.failing = failing
        self._prompts = prompts

    def __call__(self, command: Sequence[str], log: Path, tick: Any) -> int:
        kind = command[3]
        name = Path(command[command.index("--out") + 1]).name if "--out" in command else log.stem
        self.calls.append(f"{kind} {name}")
        tick()
        if f"{kind} {name}" in self.failing:
            log.write_text("first line\nout of memory\n")
            return 1
        if kind == "eval":
            write_replies(Path(command[command.index("--replies") + 1]), self._prompts)
        else:
            write_run(Path(command[command.index("--out") + 1]))
        return 0


def write_run(run: Path, taccs: Sequence[float] = (0.0, 0.5)) -> None:
    """A run directory of two steps, whose evaluations before and after have *taccs*."""
    (run / "checkpoints").mkdir(parents=True)
    rows = [{"step": step, "step_s": 2.0, "answer_length": 20.0, "reward": 1.0} for step in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {
        name: {"versions": [version, version], "metrics": {"TAcc": tacc}, "mean_tokens": 20.0}
        for name, version, tacc in zip(("before", "after"), (0, 2), taccs, strict=True)
    }
    (run / "evaluation.json").write_text(json.dumps(found))


def write_replies(path: Path, prompts: Sequence[Prompt], right: int = 1) -> None:
    """The first *right* replies have all changes, the others none."""
    lines = []
    for place, prompt in enumerate(prompts):
        text = format_answer(prompt.gold.changes, "") if place < right else ANSWER
        lines.append({"id": prompt.id, "reply": text, "num_tokens": 5})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_synthetic(study: StudyConfig, directory: StudyDirectory, complete: Sequence[str] | None = None) -> None:
    """Result files of the base and of the cells named in *complete* (all), with made-up numbers that differ by arm."""
    directory.begin(study, {})
    directory.files(BASE).result.write_text(synthetic(0.04, None, curves=False).model_dump_json())
    for cell in cells(study):
        if complete is None or cell.name in complete:
            directory.files(cell.name).result.write_text(_synthetic_cell(study, cell).model_dump_json())


def _synthetic_cell(study: StudyConfig, cell: Cell) -> CellResult:
    place = study.arms.index(cell.arm)
    return synthetic(0.82 - 0.06 * place + 0.01 * cell.seed, cell.seed, sampled=cell.arm.kind == "rl", speed=8 - place)


def synthetic(
    tacc: float, seed: int | None, *, sampled: bool = True, speed: int = 4, curves: bool = True
) -> CellResult:
    """A cell that ends at *tacc*."""
    numbers: dict[str, float | None] = dict.fromkeys(METRICS, tacc + 0.01)
    numbers |= {"Event/Diff": 1.2 - tacc, "Event/NDiff": 1 - tacc, "View/Diff": 1.3 - tacc, "View/NDiff": 1.1 - tacc}
    numbers |= {"TAcc": tacc, f"TAcc, {SAME_VIEW}": tacc + 0.05, f"TAcc, {CHANGED_VIEW}": tacc - 0.1}
    numbers |= {f"TAcc, view {view}": tacc for view in VIEWS} | {f"TAcc, {n} objects": tacc for n in (2, 3, 4)}
    numbers |= {f"TAcc, changes: {n}": tacc for n in (1, 2, 3, 4)} | {"well-formed replies": 0.99}
    careful = {"careful replies": tacc, f"careful replies, {SAME_VIEW}": tacc, f"careful replies, {CHANGED_VIEW}": tacc}
    numbers |= {**careful, "triplets a reply": 2.4, "reply length, tokens": 61.0, HALF_GAIN: 4000.0 / speed}
    seconds = Seconds(training=320.0 if curves else 0.0, set_up=31.0 if curves else 0.0, test=44.0)
    made = {"seed": seed, "date": "2026-11-25 10:00", "commit": "abc1234", "numbers": numbers, "seconds": seconds}
    if not curves:
        return CellResult(**made)
    reached = [tacc * (1 - 2 ** (-step * speed / 60)) for step in range(61)]
    validation = [
        ValidationPoint(
            version=step,
            samples=128 * step,
            seconds=5.3 * step,
            tacc=reached[step],
            careful=reached[step],
            triplets=2.4,
            length=20 + 40 * reached[step],
        )
        for step in range(0, 61, 10)
    ]
    behaviour = {"reward": 1.0, "careful": 0.5, "triplets": 2.2, "exact": 0.1}
    training = [
        TrainingPoint(
            samples=128 * step,
            seconds=5.3 * step,
            length=20 + 40 * reached[step],
            **(behaviour if sampled else dict.fromkeys(behaviour)),
        )
        for step in range(1, 61)
    ]
    return CellResult(**made, validation=tuple(validation), training=tuple(training))
