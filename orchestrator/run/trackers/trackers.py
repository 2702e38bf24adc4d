"""The trackers of a run: checked before it begins, told of each step while it runs, given a deadline at its end."""

import importlib.util
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from rich.console import Console

from orchestrator.config import ConfigError, RunConfig, TrackersConfig
from orchestrator.display import say
from orchestrator.run.directory import RunDirectory
from orchestrator.run.trackers.samples import SampleReader, pick
from orchestrator.run.trackers.sender import Entry, Memory, Sender
from orchestrator.run.trackers.tracker import FINISH_S, Opening, Tracker
from records.samples import ScoredGroup
from records.task import Task


class Trackers:
    """Tells every one of *senders*; each call returns at once."""

    def __init__(self, config: TrackersConfig, senders: Sequence[Sender], reader: SampleReader) -> None:
        self._config = config
        self._senders = senders
        self._reader = reader

    def catch_up(self, directory: RunDirectory) -> None:
        """What an earlier driver left in *directory*: a tracker that was away, or is new, gets what it lacks."""
        for row in directory.rows():
            self.row(row)
        for name, found in directory.evaluations().items():
            self.evaluation(name, found["versions"][0], found)

    def row(self, row: Mapping[str, float]) -> None:
        """The row of a step."""
        step = int(row["step"])
        columns = {name: value for name, value in row.items() if name != "step"}
        self._offer("row", step, lambda tracker: tracker.log(step, columns))

    def evaluation(self, name: str, version: int, report: Mapping[str, Any]) -> None:
        """Of held-out prompts, first answered by *version*; what is a mean over nothing is left out."""
        reward = {f"reward/{part}": value for part, value in report["reward"].items() if part != "total"}
        means = {**report["metrics"], "mean_tokens": report["mean_tokens"], "reward": report["reward"]["total"]}
        columns = {f"eval/{key}": float(value) for key, value in (means | reward).items() if value is not None}
        self._offer(f"evaluation {name}", version, lambda tracker: tracker.log(version, columns))

    def samples(self, step: int, groups: Sequence[ScoredGroup]) -> None:
        """Some of those that *step* learned from, if it is one whose samples are shown."""
        every = self._config.samples_every_steps
        if not self._senders or not every or step % every:
            return
        picked = pick(groups, self._config.samples)
        self._offer("samples", step, lambda tracker: tracker.log_samples(step, self._reader.show(picked)))

    def finish(self, ok: bool) -> list[str]:
        """Wait FINISH_S at most until all have what they were told; a line for each with which something is wrong."""
        for sender in self._senders:
            sender.end(ok)
        deadline = time.monotonic() + FINISH_S
        return [line for sender in self._senders if (line := sender.outcome(deadline))]

    def _offer(self, kind: str, step: int, send: Any) -> None:
        for sender in self._senders:
            sender.offer(Entry(kind=kind, step=step, send=send))


def check_trackers(config: TrackersConfig) -> None:
    """Raise ConfigError for a tracker whose client is not installed, or that has nobody to log in as."""
    for name in config.use:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"trackers.use names {name!r}: its client is not installed; pip install 'star-r1[{name}]', or leave it "
                "out"
            )
        _client(name).check()


@contextmanager
def tracked(config: RunConfig, directory: RunDirectory, task: Task, console: Console) -> Iterator[Trackers]:
    """The trackers that *config* names, checked before, for the run in *directory*; what failed is said at the end.

    Raises ConfigError if what the directory keeps of one is damaged.
    """
    senders = [
        Sender(name, partial(_open, name, config, directory), Memory(directory.path / "trackers" / f"{name}.json"))
        for name in config.trackers.use
    ]
    trackers = Trackers(config.trackers, senders, SampleReader(task, config.data))
    ok = False
    try:
        yield trackers
        ok = True
    finally:
        for line in trackers.finish(ok):
            say(console, f"{line}; metrics.jsonl and evaluation.json have all numbers")


def _client(name: str) -> Any:
    """The file beside this one, which imports the client."""
    return import_module(f"orchestrator.run.trackers.{name}")


def _open(name: str, config: RunConfig, directory: RunDirectory, run_id: str | None) -> Tracker:
    return _client(name).open_run(
        Opening(
            project=config.trackers.project,
            name=config.trackers.name or directory.path.name,
            id=run_id,
            folder=directory.path,
            settings=dict(_flat("", config.model_dump(mode="json", exclude_none=True))),
        )
    )


def _flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Settings by dotted key; a list is its text."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield from _flat(f"{key}.{name}".lstrip("."), below)
    else:
        yield key, value if isinstance(value, str | int | float) else str(value)
