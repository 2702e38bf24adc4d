"""The run's journal: what became of every admitted group, and the groups of the steps that a checkpoint lacks.

    journal.jsonl            a line an event, appended only; each ends with a checksum of itself
    groups/step-000012.safetensors   the groups that step 12 learned from, but for their pictures and truth, which the
                             data have under the prompts' ids

A group's number, its *ticket*, says which prompt it is of; step s learns from the tickets [(s-1) * P, s * P). Killed at
any byte, a journal is whole but for a last line, which then never was: it is cut off when the run goes on.
"""

import asyncio
import json
import os
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.numpy
import xxhash
from safetensors import safe_open

from orchestrator.run.lines import Lines, patiently
from records.packed import pack, unpack
from records.samples import PolicyVersion, Prompt, ScoredGroup
from records.task import Found

JOURNAL, GROUPS = "journal.jsonl", "groups"
_TEXT = "groups"
_SUM = b', "sum": "%08x"}\n'


class DamagedJournal(ValueError):
    """The journal at a path is not what was written; the text names the line."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line: what happened, and its facts by name."""

    name: str
    facts: dict[str, Any]


class Journal:
    """That of the run in *folder*. Nothing is written before `began`; what happens before comes behind it.

    Raises DamagedJournal.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._groups = folder / JOURNAL, folder / GROUPS
        events, self._whole = read_events(self._path)
        self._sums = {event.facts["step"]: event.facts["checksum"] for event in events if event.name == "taken"}
        self._trained = max((event.facts["step"] for event in events if event.name == "trained"), default=0)
        self._file: Lines | None = None
        self._early: list[Event] = []

    def began(self, version: PolicyVersion) -> None:
        """A driver goes on behind *version*: what was trained beyond it was not kept, and is made again."""
        self._groups.mkdir(exist_ok=True)
        self._file = Lines(self._path, self._whole)
        self._trained = min(self._trained, version)
        self.write("began", version=version)
        for event in self._early:
            self._append(event)

    @property
    def has_begun(self) -> bool:
        return self._file is not None

    def write(self, event: str, **facts: Any) -> None:
        """Append one event. It survives the death of this process, and that of the machine with the next step."""
        line = Event(event, {"at": round(time.time(), 3), **facts})
        if self._file is None:
            self._early.append(line)
        else:
            self._append(line)

    def _append(self, event: Event) -> None:
        assert self._file is not None
        self._file.append(line_of(event))

    def admitted(self, ticket: int, prompt_id: str) -> None:
        self.write("admitted", ticket=ticket, prompt=prompt_id)

    def trained(self, step: PolicyVersion) -> None:
        """The learner has made *step* of the groups that were kept for it. Of one made again nothing is written."""
        if step > self._trained:
            self.write("trained", step=step)
        self._trained = max(self._trained, step)

    async def keep(self, step: PolicyVersion, groups: Sequence[ScoredGroup]) -> None:
        """Have the groups of *step* on the disk. Raises OSError."""
        await asyncio.to_thread(self._keep, step, groups)

    def _keep(self, step: PolicyVersion, groups: Sequence[ScoredGroup]) -> None:
        text, arrays = pack([_without_data(group) for group in groups])
        content = safetensors.numpy.save(arrays, metadata={_TEXT: text})
        path = self._groups / _file_of(step)
        patiently(lambda: _write_whole(path, content), path)
        self._sums[step] = xxhash.xxh3_64_hexdigest(content)
        self.write("taken", step=step, groups=len(groups), checksum=self._sums[step])
        assert self._file is not None
        self._file.sync()

    def groups(self, step: PolicyVersion, prompt_at: Callable[[int], Prompt]) -> tuple[ScoredGroup, ...]:
        """Those kept for *step*, which is one of `kept`; *prompt_at* gives the prompt of a ticket.

        Raises DamagedJournal if the prompts are others.
        """
        path = self._groups / _file_of(step)
        with safe_open(path, framework="numpy") as file:
            text = file.metadata()[_TEXT]
            found = unpack(text, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return tuple(
            _with_data(group, prompt_at((step - 1) * len(found) + place), path) for place, group in enumerate(found)
        )

    def kept(self, after: PolicyVersion) -> list[PolicyVersion]:
        """Steps that follow *after* without a gap, whose groups are here whole."""
        steps: list[PolicyVersion] = []
        step = PolicyVersion(after + 1)
        while step in self._sums and _checksum(self._groups / _file_of(step)) == self._sums[step]:
            steps.append(step)
            step = PolicyVersion(step + 1)
        return steps

    def forget(self, until: PolicyVersion) -> None:
        """Remove the groups of the steps up to *until*: every checkpoint that is left has them."""
        for step in [step for step in self._sums if step <= until]:
            (self._groups / _file_of(step)).unlink(missing_ok=True)
            del self._sums[step]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_events(path: Path) -> tuple[list[Event], int]:
    """The events of the journal at *path*, and how many of its bytes they are. Raises DamagedJournal.

    A last line that is not whole never was; one in between is damage.
    """
    if not path.exists():
        return [], 0
    events: list[Event] = []
    whole = 0
    content = path.read_bytes()
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        event = parse(line)
        if event is None:
            if number < len(lines) - 1:
                raise DamagedJournal(f"{path}: line {number} is damaged: {line[:80]!r}")
            break
        if number == len(lines):  # without its end
            break
        events.append(event)
        whole += len(line) + 1
    return events, whole


def line_of(event: Event) -> bytes:
    """As it stands in the journal."""
    body = json.dumps({"event": event.name, **event.facts}).encode()[:-1]
    return body + _SUM % zlib.crc32(body)


def parse(line: bytes) -> Event | None:
    """A line without its end; None if it is not whole."""
    body, comma, _ = line.rpartition(b', "sum"')
    if not comma or line + b"\n" != body + _SUM % zlib.crc32(body):
        return None
    facts = json.loads(body + b"}")
    return Event(facts.pop("event"), facts)


def _write_whole(path: Path, content: bytes) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _file_of(step: PolicyVersion) -> str:
    return f"step-{step:06d}.safetensors"


def _checksum(path: Path) -> str | None:
    return xxhash.xxh3_64_hexdigest(path.read_bytes()) if path.exists() else None


def _without_data(scored: ScoredGroup) -> ScoredGroup:
    prompt = Prompt(id=scored.group.prompt.id, images=(), messages=(), gold=None)
    scores = tuple(
        replace(score, judgement={"items": list(score.judgement.columns.items())}) for score in scored.scores
    )
    return replace(scored, group=replace(scored.group, prompt=prompt), scores=scores)


def _with_data(scored: ScoredGroup, prompt: Prompt, path: Path) -> ScoredGroup:
    if scored.group.prompt.id != prompt.id:
        raise DamagedJournal(f"{path}: holds prompt {scored.group.prompt.id} where the data have {prompt.id}")
    scores = tuple(
        replace(score, judgement=Found(tuple((name, value) for name, value in score.judgement["items"])))
        for score in scored.scores
    )
    return replace(scored, group=replace(scored.group, prompt=prompt), scores=scores)
