"""What a run directory holds, read for its page (`orchestrator/report/`), whatever is not there yet or gone."""

import json
import logging
import os
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from tokenizers import Tokenizer

from orchestrator.config import ConfigError
from orchestrator.report.advice import advise
from orchestrator.report.gallery import MOST_SAMPLES, choose_groups
from orchestrator.report.page import make_page, make_payload, pack, said, stand
from orchestrator.report.run_data import RunData
from orchestrator.run.control import read_status
from orchestrator.run.folders import write_whole
from orchestrator.run.journal import JOURNAL, DamagedJournal, read_events
from orchestrator.run.metrics import read_rows
from orchestrator.run.traces import SCHEMA, TRACES, read_traces
from records.samples import Prompt
from records.task import SPLITS, Task, load_task

logger = logging.getLogger(__name__)

PAGE = "report.html"
T = TypeVar("T")


def write_page(folders: Sequence[Path], out: Path) -> list[str]:
    """The page of the runs in *folders*, and what it lacks, a sentence each. Raises ConfigError, OSError."""
    runs = read_runs(folders)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, make_page(runs, time.time()))
    return [note if len(runs) == 1 else f"{run.name}: {note}" for run in runs for note in run.notes]


def leave_page(folder: Path) -> None:
    """`report.html` of the run that ends in *folder*; one that cannot be made is no reason to fail."""
    try:
        write_page([folder], folder / PAGE)
    except Exception as error:
        logger.warning("there is no %s (%r); try star-r1 report %s", folder / PAGE, error, folder)


class LivePages:
    """`orchestrator.report.serve.Pages` of the runs in *folders*."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders

    def stamp(self) -> str:
        return ",".join(_stamp(folder) for folder in self._folders)

    def status(self) -> list[dict[str, Any]]:
        now = time.time()
        runs = read_runs(self._folders, most_samples=0)
        standings = [stand(run, now) for run in runs]
        return [said(advise(it)) | {"running": it.running} for it in standings]

    def page(self, stamp: str) -> bytes:
        return make_page(read_runs(self._folders), time.time(), stamp).encode()

    def payload(self, stamp: str) -> bytes:
        return pack(make_payload(read_runs(self._folders), time.time()))


def _stamp(folder: Path) -> str:
    """Of the files that change once a step or more seldom."""
    files = [folder / name for name in ("config.toml", "metrics.jsonl", "evaluation.json")]
    found = [(path.name, path.stat().st_mtime_ns) for path in files if path.exists()]
    traces = sorted(os.listdir(folder / TRACES)) if (folder / TRACES).exists() else []
    return f"{hash((tuple(found), tuple(traces))):x}"


def read_runs(folders: Sequence[Path], most_samples: int = MOST_SAMPLES) -> list[RunData]:
    """`read_run` of each; where two have one name, the folders that these are in tell them apart."""
    runs = [read_run(folder, most_samples) for folder in folders]
    counts = Counter(run.name for run in runs)
    return [
        run if counts[run.name] == 1 else replace(run, name="/".join(folder.resolve().parts[-2:]))
        for run, folder in zip(runs, folders, strict=True)
    ]


def read_run(folder: Path, most_samples: int | None = MOST_SAMPLES, columns: Sequence[str] = SCHEMA.names) -> RunData:
    """With at most so many of its samples, and these *columns* of them; with 0 it takes a moment, None means all.

    What is missing or damaged is left out, and is one of the notes.

    Raises ConfigError where there is no run.
    """
    config = _read_config(folder)
    notes: list[str] = []
    began = _read(lambda: _json(folder / "run.json"), dict[str, Any](), notes, "run.json")
    task = _read(lambda: load_task(config["task"]), None, notes, "its task")
    rows = _read(lambda: read_rows(folder / "metrics.jsonl"), list[dict[str, float]](), notes, "metrics.jsonl")
    events = _read(lambda: _events(folder), list[dict[str, Any]](), notes, JOURNAL)
    evaluations = _read(lambda: _evaluations(folder), dict[str, Any](), notes, "evaluation.json")
    status = _read(lambda: read_status(folder), None, notes, "status.json")
    traces, total, prompts = SCHEMA.empty_table(), 0, dict[str, Prompt]()
    if most_samples != 0:
        traces, total = _read(lambda: _traces(folder, most_samples, columns), (traces, 0), notes, TRACES)
        if not total and began.get("kind") != "sft":
            notes.append("No samples were kept (traces.share): there is no gallery, no freshness and no behaviour.")
        if total and task is not None:
            wanted = set(traces["prompt_id"].to_pylist())
            prompts = _read(lambda: _prompts(task, folder, config, began.get("data"), wanted), {}, notes, "its data")
    return RunData(
        name=folder.resolve().name,
        config=config,
        data_identity=began.get("data", str(folder)),
        task=task,
        rows=rows,
        events=events,
        evaluations=evaluations,
        status_at=None if status is None else status.at,
        traces=traces,
        traces_total=total,
        prompts=prompts,
        tokens=_token_texts(folder, config),
        notes=tuple(notes),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.toml"
    if not path.exists():
        raise ConfigError(
            f"{folder}: is no run directory, for it has no config.toml; give one that `star-r1 train` made"
        )
    try:
        config = tomllib.loads(path.read_text())
        if missing := {"task", "model", "loop", "data"} - config.keys():
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
        return config
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); put back the one that the run wrote") from error


def _read(read: Callable[[], T], missing: T, notes: list[str], what: str) -> T:
    """What *read* returns; *missing*, and a note of why, where that is not to be had."""
    try:
        return read()
    except FileNotFoundError as error:
        why = "" if error.strerror else f" ({error})"
        notes.append(f"{what} is not there{why}, and what it would show is left out.")
    except (OSError, ValueError, KeyError, TypeError, DamagedJournal) as error:
        notes.append(f"{what} cannot be read ({error}), and what it would show is left out.")
    return missing


def _events(folder: Path) -> list[dict[str, Any]]:
    events, _ = read_events(folder / JOURNAL)
    return [{"event": event.name, **event.facts} for event in events]


def _evaluations(folder: Path) -> dict[str, Any]:
    """None before the first."""
    path = folder / "evaluation.json"
    return _json(path) if path.exists() else {}


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _traces(folder: Path, most: int | None, columns: Sequence[str]) -> tuple[pa.Table, int]:
    """At most so many, and how many there are."""
    tickets = read_traces(folder, ["ticket"])["ticket"].to_pylist()
    chosen = None if most is None else choose_groups(tickets, most)
    return read_traces(folder, columns, chosen), len(tickets)


def _prompts(
    task: Task, folder: Path, config: dict[str, Any], identity: str | None, wanted: Collection[str]
) -> dict[str, Prompt]:
    """Those of the training split, where the data are still those that the run learned from.

    A `path` that is not absolute, as no run writes it, leads on from the run in *folder*.
    """
    where = {"path": str(folder / config["data"]["path"])} if "path" in config["data"] else {}
    data = task.open(task.data_config(**config["data"] | where))
    if identity is not None and data.identity != identity:
        raise ValueError(f"they are known as {data.identity}, and the run learned from {identity}")
    train, _ = SPLITS
    prompts = data.prompts(train)
    places = [place for place, name in enumerate(data.golds(train).ids()) if name in wanted]
    return {prompt.id: prompt for prompt in map(prompts.__getitem__, places)}


def _token_texts(folder: Path, config: dict[str, Any]) -> Callable[[int], str | None]:
    """By the tokeniser of the policy, where it is a folder that is still there; None for each token without one."""
    places = [place / "tokenizer.json" for place in (folder / "model", folder / config["model"])]

    @cache
    def tokenizer() -> Tokenizer | None:
        return next((Tokenizer.from_file(str(place)) for place in places if place.exists()), None)

    def text(token: int) -> str | None:
        known = tokenizer()
        return known and (known.decode([token], skip_special_tokens=False) or known.id_to_token(token))

    return text
