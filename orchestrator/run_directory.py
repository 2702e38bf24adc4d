"""The run directory: what a run leaves behind, and what it needs to go on.

It holds `config.toml` (resolved), `metrics.jsonl` (a row a step), `evaluation.json` (before, after, and of versions
between), `replies/` with the held-out replies of each evaluation, `checkpoints/`, `refused/` if a step was not finite,
and in the end `model/`, a plain Hugging Face folder.
"""

import dataclasses
import json
import os
import tomllib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w

from learner.actor import CHECKPOINTS
from learner.checkpoint import Checkpoint, Torn, find_newest
from orchestrator.config import ConfigError, RunConfig
from orchestrator.evaluate import Evaluation
from orchestrator.metrics import read_rows, write_rows
from tvr.metrics import MetricsReport
from tvr.records import PolicyVersion

MUST_STAY = (
    "model",
    "seed",
    "data",
    "loop.groups_per_step",
    "rollout.samples_per_prompt",
    "learner.freeze",
    "learner.lora_rank",
    "learner.lora_alpha",
)
"""Settings, or tables of them, without which going on would be another run."""
MAY_CHANGE = ("data.workers",)
"""What may change in these tables."""


class RunDirectory:
    """*path* with the newest whole *checkpoint*, from which the run goes on, and the *torn* ones that are newer."""

    def __init__(self, path: Path, checkpoint: Checkpoint | None = None, torn: list[Torn] | None = None) -> None:
        self.path = path.resolve()
        self.checkpoint = checkpoint
        self.torn = torn or []
        self.metrics = self.path / "metrics.jsonl"
        self.model = self.path / "model"

    @property
    def version(self) -> PolicyVersion:
        """Steps that are done."""
        return PolicyVersion(0) if self.checkpoint is None else self.checkpoint.version

    def begin(self, config: RunConfig) -> None:
        """Write the resolved config, and forget the rows of steps that will be done again."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "config.toml").write_text(_dump(config))
        if self.metrics.exists():
            write_rows(self.metrics, [row for row in read_rows(self.metrics) if row["step"] <= self.version])

    def rows(self) -> list[dict[str, float]]:
        """The rows of all steps so far, one a step."""
        return read_rows(self.metrics) if self.metrics.exists() else []

    def evaluations(self) -> dict[str, Any]:
        """What `evaluation.json` holds, by name."""
        path = self.path / "evaluation.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def reports(self, *names: str) -> dict[str, MetricsReport]:
        """Those of *names* that `evaluation.json` holds."""
        found = self.evaluations()
        fields = [field.name for field in dataclasses.fields(MetricsReport)]
        return {name: MetricsReport(**{key: found[name][key] for key in fields}) for name in names if name in found}

    def add_evaluation(self, name: str, found: Evaluation) -> None:
        """Write it beside those that are there, with the versions that answered; its replies first, to a file."""
        path = self._replies(name)
        path.parent.mkdir(exist_ok=True)
        write_rows(path, ({"id": it.id, "reply": it.text, "num_tokens": it.num_tokens} for it in found.replies))
        content = self.evaluations() | {
            name: {
                "versions": [found.oldest, found.newest],
                **asdict(found.report),
                "careful": found.careful,
                "triplets": found.triplets,
            }
        }
        part = self.path / "evaluation.json.part"
        part.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(part, self.path / "evaluation.json")

    def replies(self, name: str) -> dict[str, str]:
        """The replies of evaluation *name*, by id of the prompt; none where it was not made here."""
        path = self._replies(name)
        if not path.exists():
            return {}
        return {line["id"]: line["reply"] for line in map(json.loads, path.read_text().split("\n")[:-1])}

    def _replies(self, name: str) -> Path:
        """The file that `star-r1 score --replies` reads."""
        return self.path / "replies" / f"{name.replace(' ', '-')}.jsonl"


def open_run_directory(config: RunConfig, out: Path, resume: bool) -> RunDirectory:
    """A new directory, or with *resume* one to go on in (new if there is none). Raises ConfigError."""
    if not (out / "config.toml").exists():
        return RunDirectory(out)
    if not resume:
        raise ConfigError(f"--out {out}: holds a run already; add --resume to go on with it, or name another folder")
    before = tomllib.loads((out / "config.toml").read_text())
    now = tomllib.loads(_dump(config))
    changes = [change for key in MUST_STAY for change in _changes(key, _value(before, key), _value(now, key))]
    for key, old, new in changes:
        if key not in MAY_CHANGE:
            raise ConfigError(
                f"--resume {out}: {key} was {old!r} and is {new!r}; go on as the run began, or name another folder"
            )
    checkpoint, torn = find_newest(out.resolve() / CHECKPOINTS)
    return RunDirectory(out, checkpoint, torn)


def _dump(config: RunConfig) -> str:
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _value(content: Any, key: str) -> Any:
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _changes(key: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Key, old and new value of every setting that differs at or below *key*."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old | new:
            yield from _changes(f"{key}.{name}", old.get(name), new.get(name))
    elif old != new:
        yield key, old, new
