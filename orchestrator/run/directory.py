"""The run directory: what a run leaves behind, and what it needs to go on.

It holds `config.toml` (resolved; `config-000040.toml` is what it was up to version 40), `run.json` (`train` or `sft`,
and on which data), `metrics.jsonl` (a row a step), `evaluation.json` (before, after, and of versions between),
`replies/` with the held-out replies of each evaluation, `checkpoints/`, `refused/` if a step was not finite, in
`trackers/` what each tracker has, and in the end `model/`, a plain Hugging Face folder. `.lock` is locked by the driver
of the run, so that there is one at a time.
"""

import json
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w
from pydantic import BaseModel

from learner.actor import CHECKPOINTS
from learner.checkpoint import Checkpoint, Torn, find_newest
from orchestrator.config import ConfigError, RunConfig
from orchestrator.run.evaluate import Evaluation
from orchestrator.run.folders import lock, write_whole
from orchestrator.run.metrics import read_rows, write_rows
from records.samples import PolicyVersion
from records.task import DataSet, load_task

MAY_CHANGE = (
    "device",
    "start_timeout_s",
    "loop.steps",
    "evaluation.every_steps",
    "evaluation.concurrent_prompts",
    "checkpoint",
    "supervision",
    "trackers",
    "rollout.workers",
    "rollout.autoscale",
    "rollout.concurrent_prompts",
    "rollout.weight_transport",
    "rollout.timeout_s",
    "rollout.max_num_seqs",
    "rollout.max_pictures",
    "rollout.kv_cache_mib",
    "rollout.gpu_memory_utilization",
    "rollout.tensor_parallel_size",
    "rollout.enforce_eager",
    "reward_service.workers",
    "reward_service.concurrent_samples",
    "reward_service.timeout_s",
    "reward_service.rule_timeout_s",
    "reward_service.memory_mib",
    "learner.ranks",
    "learner.zero_stage",
    "learner.offload_optimizer",
    "learner.row_tokens",
    "learner.gradient_checkpointing",
    "learner.timeout_s",
)
"""Settings, or tables of them, with which a run may go on and is the same run: how long it is, where and how fast it
runs, what is kept; and those of `data` that its task lists. All others made its policy, and stay."""


Kind = Literal["train", "sft"]
Table = TypeVar("Table", bound=BaseModel)
LOCK_WAIT_S = 20.0
"""For a run that was killed a moment ago, whose processes are about to end."""


class RunDirectory:
    """*path* with the newest *checkpoint*, from which the run goes on, and the *torn* ones that are newer.

    Its bytes are still to be read: who finds them damaged calls `pass_over`. *changed* says, a line each, what is
    another setting than the run began with.
    """

    def __init__(
        self,
        path: Path,
        checkpoint: Checkpoint | None = None,
        torn: tuple[Torn, ...] = (),
    ) -> None:
        self.path = path.resolve()
        self.checkpoint = checkpoint
        self.torn = torn
        self.changed: tuple[str, ...] = ()
        self.metrics = self.path / "metrics.jsonl"
        self.model = self.path / "model"

    @property
    def version(self) -> PolicyVersion:
        """Steps that are in the checkpoint."""
        return PolicyVersion(0) if self.checkpoint is None else self.checkpoint.version

    def pass_over(self, reasons: Sequence[str]) -> None:
        """Go on from an older checkpoint, since this one is damaged. Raises ConfigError if there is none."""
        assert self.checkpoint is not None, "there is no checkpoint to pass over"
        version = self.checkpoint.version
        self.checkpoint, older = find_newest(self.path / CHECKPOINTS, before=version)
        self.torn += (Torn(version=version, reason="; ".join(reasons)), *older)
        self.check_not_lost()

    def look_again(self) -> None:
        """Take the newest checkpoint that is there now."""
        self.checkpoint, torn = find_newest(self.path / CHECKPOINTS)
        self.torn = tuple(torn)

    def oldest_checkpoint(self) -> PolicyVersion | None:
        """The version of the oldest one that is there and finished; None without any."""
        found = [path.name.removeprefix("step-") for path in (self.path / CHECKPOINTS).glob("step-*")]
        return PolicyVersion(min(map(int, whole))) if (whole := [name for name in found if name.isdigit()]) else None

    def check_not_lost(self) -> None:
        """Raise ConfigError if the run would begin anew and replace what it made."""
        if self.checkpoint is None and (self.torn or self.model.exists()):
            reasons = "".join(f"\n  {each.reason}" for each in self.torn)
            raise ConfigError(
                f"--resume {self.path}: there is no whole checkpoint to go on from, and beginning anew would replace "
                f"what the run made; name another folder, or move this one away{reasons}"
            )

    def check_data(self, data: DataSet) -> None:
        """Raise ConfigError unless the run learned from these data so far, wherever they lie."""
        if self._began and (known := self._began["data"]) != data.identity:
            raise ConfigError(
                f"--resume {self.path}: the run learned from data known as {known}, and these are known as "
                f"{data.identity}; give the data it began with, or name another folder"
            )

    def begin(self, config: RunConfig, kind: Kind, data: DataSet, version: PolicyVersion) -> None:
        """Write the resolved config, and of which *kind* and on which *data* the run is, which goes on from *version*.

        The rows of steps that will be done again are forgotten.
        """
        now, path = _dump(config), self.path / "config.toml"
        if path.exists() and path.read_text() != now:
            shutil.copy(path, self.path / f"config-{version:06d}.toml")
        write_whole(self.path / "run.json", json.dumps({"kind": kind, "data": data.identity}, indent=2) + "\n")
        write_whole(path, now)
        if self.metrics.exists():
            write_rows(self.metrics, [row for row in read_rows(self.metrics) if row["step"] <= version])

    @property
    def _began(self) -> dict[str, str]:
        """What `run.json` says; empty before the run begins."""
        path = self.path / "run.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def rows(self) -> list[dict[str, float]]:
        """The rows of all steps so far, one a step."""
        return read_rows(self.metrics) if self.metrics.exists() else []

    def evaluations(self) -> dict[str, Any]:
        """What `evaluation.json` holds, by name."""
        path = self.path / "evaluation.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def add_evaluation(self, name: str, found: Evaluation) -> None:
        """Write it beside those that are there, with the versions that answered; its replies first, to a file."""
        path = self._replies(name)
        path.parent.mkdir(exist_ok=True)
        write_rows(path, (it.to_json() for it in found.replies))
        content = self.evaluations() | {name: {"versions": [found.oldest, found.newest], **found.report}}
        write_whole(self.path / "evaluation.json", json.dumps(content, indent=2) + "\n")

    def replies(self, name: str) -> dict[str, dict[str, Any]]:
        """The lines of evaluation *name* (`HeldOutReply.to_json`), by prompt; none if it was not made here."""
        path = self._replies(name)
        if not path.exists():
            return {}
        return {line["id"]: line for line in map(json.loads, path.read_text().split("\n")[:-1])}

    def _replies(self, name: str) -> Path:
        """The file that `star-r1 score --replies` reads."""
        return self.path / "replies" / f"{name.replace(' ', '-')}.jsonl"


@contextmanager
def claimed_run_directory(config: RunConfig, out: Path, kind: Kind, resume: bool) -> Iterator[RunDirectory]:
    """`open_run_directory`, with nobody else running in it meanwhile. Raises ConfigError.

    A folder that was made for a run which did not begin is removed again.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        owned = lock(out / ".lock", LOCK_WAIT_S)
    except BlockingIOError as error:
        raise ConfigError(f"--out {out}: another run works in it; wait, end it, or name another folder") from error
    except OSError as error:
        raise ConfigError(
            f"--out {out}: a run cannot be written there ({error.strerror}); name another folder"
        ) from error
    with owned:
        try:
            yield open_run_directory(config, out, kind, resume)
        finally:
            if not (out / "config.toml").exists():
                (out / ".lock").unlink(missing_ok=True)
                with suppress(OSError):  # it holds something else, which was there before
                    out.rmdir()


def open_run_directory(config: RunConfig, out: Path, kind: Kind, resume: bool) -> RunDirectory:
    """A new directory, or with *resume* one to go on in (new if there is none). Raises ConfigError."""
    if not (out / "config.toml").exists():
        return RunDirectory(out)
    if not resume:
        raise ConfigError(f"--out {out}: holds a run already; add --resume to go on with it, or name another folder")
    changed = _check_same_run(config, out, kind)
    checkpoint, torn = find_newest(out.resolve() / CHECKPOINTS)
    directory = RunDirectory(out, checkpoint, tuple(torn))
    if checkpoint is None and directory.rows():
        changed.append(f"no checkpoint yet: the run begins anew, and its {len(directory.rows())} steps are made again")
    directory.changed = tuple(changed)
    if directory.version > config.loop.steps:
        raise ConfigError(
            f"--resume {out}: loop.steps is {config.loop.steps} and the run has made {directory.version}; give more "
            "steps, or name another folder"
        )
    directory.check_not_lost()
    return directory


def _check_same_run(config: RunConfig, out: Path, kind: Kind) -> list[str]:
    """What is changed and may, a line each. Raises ConfigError for what would make another run of it."""
    try:
        before = tomllib.loads((out / "config.toml").read_text())
        began = json.loads((out / "run.json").read_text())["kind"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"--resume {out}: its config.toml or run.json cannot be read ({error}); name another folder"
        ) from error
    if began != kind:
        raise ConfigError(f"--resume {out}: holds a run of `star-r1 {began}`, and this is `star-r1 {kind}`; use that")
    changed = []
    may_change = (*MAY_CHANGE, *(f"data.{key}" for key in load_task(config.task).may_change))
    for key, old, new in _changes("", before, tomllib.loads(_dump(config))):
        if not any(key == may or key.startswith(f"{may}.") for may in may_change):
            raise ConfigError(
                f"--resume {out}: {key} was {old!r} and is {new!r}; go on as the run began, or begin another run from "
                f"its policy: --set model={out}/model --out NEW"
            )
        changed.append(f"going on with {key} = {new!r}, which was {old!r}")
    return changed


def _dump(config: RunConfig) -> str:
    """As a run file, with absolute paths: it holds wherever it is read from."""
    return tomli_w.dumps(_whole(config).model_dump(mode="json", exclude_none=True))


def _whole(table: Table) -> Table:
    """*table* with all paths in it absolute."""
    found: dict[str, Any] = {}
    for name, value in table:
        if isinstance(value, Path):
            found[name] = value.resolve()
        elif isinstance(value, BaseModel):
            found[name] = _whole(value)
    return table.model_copy(update=found)


def _changes(key: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Key, old and new value of every setting that differs at or below *key*."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old | new:
            yield from _changes(f"{key}.{name}".lstrip("."), old.get(name), new.get(name))
    elif old != new:
        yield key, old, new
