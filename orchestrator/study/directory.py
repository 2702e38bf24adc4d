"""The folder of a study: whose it is, where its cells are, and who works in it.

It holds `study.toml` (resolved), `base.json` (checksums of the base policy), `study.json` and `study.html`, and in
`cells/` for each cell NAME its run directory NAME and beside it NAME.toml (its run file), NAME.log, NAME.replies.jsonl
(to the test pairs), NAME.seconds.json and, once all of it is there, NAME.result.json. The base has the name `base`.
"""

import hashlib
import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from orchestrator.config import ConfigError
from orchestrator.run.folders import lock, write_whole
from orchestrator.study.config import StudyConfig

BASE = "base"
MAY_CHANGE = ("out", "data.workers", "test.workers")
"""Settings that change no result. Beside them, seeds and arms may be added."""
LOCK_WAIT_S = 20.0
"""For the command of a killed study, which ends by itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CellFiles:
    """Where one cell, or the base, has its parts; *run* is a run directory."""

    run: Path
    run_file: Path
    log: Path
    replies: Path
    seconds: Path
    result: Path


class StudyDirectory:
    """*path*, which belongs to one study."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results = path / "study.json"
        self.page = path / "study.html"

    @property
    def begun(self) -> bool:
        return (self.path / "study.toml").exists()

    def files(self, name: str) -> CellFiles:
        run = self.path / "cells" / name
        kinds = ("toml", "log", "replies.jsonl", "seconds.json", "result.json")
        run_file, log, replies, seconds, result = (run.with_name(f"{name}.{kind}") for kind in kinds)
        return CellFiles(run=run, run_file=run_file, log=log, replies=replies, seconds=seconds, result=result)

    def begin(self, study: StudyConfig, checksums: dict[str, str]) -> None:
        """Make the folder this study's, or the study grown."""
        (self.path / "cells").mkdir(parents=True, exist_ok=True)
        write_whole(self.path / "base.json", json.dumps(checksums, indent=2) + "\n")
        write_whole(self.path / "study.toml", tomli_w.dumps(resolved(study)))

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Nobody else may run cells meanwhile. Gives the lock's file, which a cell's command inherits: it ends after
        its study was killed, not with it. Raises ConfigError if another study keeps it."""
        try:
            file = lock(self.path / "lock", LOCK_WAIT_S)
        except BlockingIOError as error:
            raise ConfigError(f"out = {self.path}: another study runs in it; wait, or end it") from error
        with file:
            yield file.fileno()


def open_study_directory(study: StudyConfig) -> StudyDirectory:
    """The folder, old or to be made; nothing is written. Raises ConfigError if it belongs to something else."""
    out = study.out
    directory = StudyDirectory(out)
    if not directory.begun:
        if out.exists() and any(out.iterdir()):
            raise ConfigError(f"out = {out}: holds files of something else than a study; name another folder")
        return directory
    before, now = tomllib.loads((out / "study.toml").read_text()), json.loads(json.dumps(resolved(study)))
    for key, old, new in _changes("", _by_name(before), _by_name(now)):
        raise ConfigError(
            f"out = {out}: belongs to another study, in which {key} was {old!r} and not {new!r}; go on as it began "
            "(only seeds and arms may be added), or name another folder"
        )
    return directory


def check_base(directory: StudyDirectory, model: Path) -> dict[str, str]:
    """SHA-256 of the files of the base. Raises ConfigError if they were others when the study began."""
    now = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(model.iterdir())
        if path.suffix in (".json", ".safetensors", ".bin", ".jinja", ".model", ".txt")
    }
    recorded = directory.path / "base.json"
    before = json.loads(recorded.read_text()) if recorded.exists() else now
    if changed := sorted(name for name in before | now if before.get(name) != now.get(name)):
        raise ConfigError(
            f"model = {str(model)!r}: {', '.join(changed)} changed since the study in {directory.path} began, so that "
            "its arms would have different bases; restore the folder, or name another out folder"
        )
    return now


def resolved(study: StudyConfig) -> dict[str, Any]:
    """The study as a file would have it, every key given."""
    per_arm = {"reward_service": {"rule"}, "learner": {"imitation"}}
    return study.model_dump(mode="json", exclude_none=True, exclude=per_arm)


def _by_name(content: dict[str, Any]) -> dict[str, Any]:
    return content | {"arms": {arm["name"]: arm for arm in content["arms"]}}


def _changes(key: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Key, old and new value of every setting at or below *key* that differs, and may not."""
    if isinstance(old, dict) and isinstance(new, dict):
        added_may = key == "arms"
        for name in old if added_may else old | new:
            yield from _changes(f"{key}.{name}".lstrip("."), old.get(name), new.get(name))
    elif key == "seeds":
        if not set(old) <= set(new):
            yield key, old, new
    elif old != new and key not in MAY_CHANGE:
        yield key, old, new
