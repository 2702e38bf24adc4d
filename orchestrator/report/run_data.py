"""What a run has left, as the page takes it: plain data, whoever read it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from records.samples import Prompt
from records.task import Task

Row = Mapping[str, float]
"""A row of `metrics.jsonl`."""
Event = Mapping[str, Any]
"""A line of `journal.jsonl`: `event`, its name, `at`, in seconds since 1970, and its facts."""
SAME, CHANGED = "same view", "changed view"
VIEWS = {"center": SAME, "left": CHANGED, "right": CHANGED}
"""Kinds of prompts that are cameras: the first picture is always seen from the center."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunData:
    """A run called *name*, with its *config* as it resolved it; *data_identity* is by what its data are known.

    *traces* holds some or all of the *traces_total* samples that were kept, in the columns of
    `orchestrator.run.traces`, whole groups, in order. *prompts* has the prompts that they answer, by id, and *tokens*
    gives the text of a token, as far as data and tokeniser are still there. *notes* say, a sentence each, what is not.
    """

    name: str
    config: Mapping[str, Any]
    data_identity: str
    task: Task | None
    rows: Sequence[Row]
    events: Sequence[Event]
    evaluations: Mapping[str, Mapping[str, Any]]
    status_at: float | None
    traces: pa.Table
    traces_total: int
    prompts: Mapping[str, Prompt]
    tokens: Callable[[int], str | None]
    notes: tuple[str, ...]

    @property
    def steps(self) -> int:
        """How many the run shall make."""
        return int(self.config["loop"]["steps"])

    @property
    def groups_per_step(self) -> int:
        return int(self.config["loop"]["groups_per_step"])

    @property
    def max_staleness(self) -> int:
        return int(self.config["loop"]["max_staleness"])


def kind_of(task: Task, prompt: Prompt) -> str:
    """Of a prompt, as the page calls it; empty where the task has but one kind."""
    kind = task.kind(prompt.gold)
    return "" if kind is None else str(kind)
