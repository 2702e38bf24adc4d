"""What was sampled, one row a sample, in Parquet: `datasets.load_dataset("parquet", data_dir=RUN/traces)` opens it.

    traces/000001-000064.parquet    the samples that these steps learned from
    traces/000065-000065.parquet    newer steps, one each, until they are put together like the others

Every file is written whole, so what a kill takes is the steps that were not written yet, never a file. A thread beside
the run does all of it, and never holds the run up: a step that cannot be kept is left out, and that is said.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestrator.config import TracesConfig
from records.samples import PolicyVersion, ScoredGroup, StepReport
from records.task import Task

logger = logging.getLogger(__name__)

TRACES = "traces"
STEPS_A_FILE = 64
"""Put together in one file, or fewer, if they are large."""
MOST_WAITING = 8
"""Steps that may wait for the disk, in memory."""

_MIB = 1 << 20
_MOMENT = pa.timestamp("us", tz="UTC")
_NUMBERS = pa.list_(pa.struct([("name", pa.string()), ("value", pa.float64())]))
SCHEMA = pa.schema(
    [
        pa.field("step", pa.int32()),
        pa.field("ticket", pa.int64()),
        pa.field("prompt_id", pa.string()),
        pa.field("sample", pa.int16()),
        pa.field("worker", pa.string()),
        pa.field("asked_at", _MOMENT),
        pa.field("first_token_at", _MOMENT),
        pa.field("ended_at", _MOMENT),
        pa.field("scored_at", _MOMENT),
        pa.field("trained_at", _MOMENT),
        pa.field("finish", pa.string()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("token_ids", pa.list_(pa.int32())),
        pa.field("versions", pa.list_(pa.int32())),
        pa.field("logprobs", pa.list_(pa.float32())),
        pa.field("learner_logprobs", pa.list_(pa.float32())),
        pa.field("reply", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("malformed", pa.string()),
        pa.field("reward", pa.float64()),
        pa.field("terms", _NUMBERS),
        pa.field("found", _NUMBERS),
    ]
)
"""*sample* counts within its group, whose number is *ticket*. One entry for each token of the answer: *token_ids*,
*versions*, *logprobs* (of the sampler, nats) and *learner_logprobs*, those of the policy that learned from it, before
the step; null where the step did not learn from the group. *answer* is the reply as the task reads it, null where that
is *malformed*; *terms* are those of the reward, *found* the task's columns. Times are null where nobody took them.
"""


class Traces:
    """Keeps the share of groups that *config* asks for, of the run in *folder*. *tell* is told of what is lost.

    What an earlier driver kept beyond step *after*, which will be made again, is forgotten.
    """

    def __init__(
        self,
        folder: Path,
        config: TracesConfig,
        task: Task,
        tell: Callable[..., None],
        after: PolicyVersion,
    ) -> None:
        self._folder = folder / TRACES
        self._config = config
        self._task = task
        self._tell = tell
        self._lost = 0
        self._waiting = threading.Semaphore(MOST_WAITING)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="traces")
        if config.share:
            self._folder.mkdir(exist_ok=True)
        if self._folder.exists():
            forget(self._folder, after)

    def keep(self, report: StepReport, groups: Sequence[ScoredGroup], trained_at: float) -> None:
        """The samples of a step, soon; *trained_at* is in seconds since 1970."""
        if not self._config.share:
            return
        if not self._waiting.acquire(blocking=False):
            self._lose(report.version, f"{MOST_WAITING} steps wait for the disk already")
            return
        self._thread.submit(self._keep, report, groups, trained_at)

    def close(self) -> None:
        """Return when all of it is written."""
        self._thread.shutdown()

    def _keep(self, report: StepReport, groups: Sequence[ScoredGroup], trained_at: float) -> None:
        try:
            table = to_table(report, groups, self._task, self._config.share, trained_at)
            if len(table):
                _write(self._folder / _name(report.version, report.version), table)
                _put_together(self._folder, self._config.file_mib * _MIB)
        except Exception as error:  # whatever it is, it is no reason to end the run
            self._lose(report.version, repr(error))
        finally:
            self._waiting.release()

    def _lose(self, step: PolicyVersion, why: str) -> None:
        self._lost += 1
        if self._lost == 1:
            logger.warning("the samples of step %d are not kept in %s: %s", step, self._folder, why)
        self._tell("traces lost", step=step, why=why)


def to_table(
    report: StepReport, groups: Sequence[ScoredGroup], task: Task, share: float, trained_at: float
) -> pa.Table:
    """Rows of the samples of one step, of as many groups as *share* says; see `SCHEMA`."""
    first = (report.version - 1) * len(groups)
    learned = report.logprobs or [()] * len(groups)
    rows = [
        row
        for place, (group, logprobs) in enumerate(zip(groups, learned, strict=True))
        if is_kept(first + place, share)
        for row in _rows(report.version, first + place, group, logprobs, task, trained_at)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def is_kept(ticket: int, share: float) -> bool:
    """Every so many groups one is, evenly.

    >>> [ticket for ticket in range(10) if is_kept(ticket, 0.3)]
    [3, 6, 9]
    """
    return int((ticket + 1) * share + 1e-9) > int(ticket * share + 1e-9)


def _rows(
    step: PolicyVersion,
    ticket: int,
    scored: ScoredGroup,
    logprobs: Sequence[np.ndarray],
    task: Task,
    trained_at: float,
) -> Iterator[dict[str, Any]]:
    origin = scored.origin
    for index, (sample, score) in enumerate(zip(scored.group.samples, scored.scores, strict=True)):
        trace, read = sample.trace, task.read(sample.text, scored.group.prompt.gold)
        learned = logprobs[index] if logprobs and len(logprobs[index]) else None
        yield {
            "step": step,
            "ticket": ticket,
            "prompt_id": scored.group.prompt.id,
            "sample": index,
            "worker": None if origin is None else origin.worker,
            "asked_at": None if origin is None else _moment(origin.asked),
            "first_token_at": None if sample.times is None else _moment(sample.times.first_token),
            "ended_at": None if sample.times is None else _moment(sample.times.ended),
            "scored_at": None if origin is None else _moment(origin.scored[index]),
            "trained_at": _moment(trained_at),
            "finish": trace.finish,
            "prompt_tokens": len(trace.prompt_token_ids),
            "token_ids": trace.token_ids,
            "versions": np.repeat(
                [span.version for span in trace.versions], [span.end - span.start for span in trace.versions]
            ),
            "logprobs": trace.logprobs,
            "learner_logprobs": learned,
            "reply": sample.text,
            "answer": read.answer,
            "malformed": read.malformed,
            "reward": score.total,
            "terms": _numbers(score.parts),
            "found": _numbers(score.judgement.columns),
        }


def read_traces(run: Path, columns: Sequence[str] | None = None, tickets: Sequence[int] | None = None) -> pa.Table:
    """All that the run in the folder *run* has kept, by step, ticket and sample; no rows if it kept nothing.

    With *tickets*, the samples of these groups alone.

    Raises ValueError, which names it, for a file that cannot be read.
    """
    schema = SCHEMA if columns is None else pa.schema([SCHEMA.field(name) for name in columns])
    chosen = None if tickets is None else pc.field("ticket").isin(pa.array(tickets, pa.int64()))
    tables = [_read(file.path, schema.names, chosen) for file in _files(run / TRACES)]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def forget(folder: Path, after: PolicyVersion) -> None:
    """Leave out the steps behind *after*, and what a kill has left of a file."""
    for part in folder.glob("*.part"):
        part.unlink()
    whole = _files(folder)
    for path in set(folder.glob("*.parquet")) - {file.path for file in whole}:
        path.unlink()
    for file in whole:
        if file.last <= after:
            continue
        if file.first <= after:
            table = _read(file.path, SCHEMA.names)
            _write(folder / _name(file.first, after), table.filter(pc.field("step") <= after))
        file.path.unlink()


class _File(NamedTuple):
    """Steps *first* to *last*."""

    first: int
    last: int
    path: Path


def _files(folder: Path) -> list[_File]:
    """In order; without those that a kill has left beside the one they were put together in."""
    found = [_File(*_range(path), path) for path in folder.glob("*-*.parquet")]
    files: list[_File] = []
    for file in sorted(found, key=lambda it: (it.first, -it.last)):
        if not files or file.last > files[-1].last:
            files.append(file)
    return files


def _range(path: Path) -> tuple[int, int]:
    first, last = path.stem.split("-")
    return int(first), int(last)


def _put_together(folder: Path, full: int) -> None:
    """The files of single steps, once there are many, or they are *full* bytes."""
    single = [file for file in _files(folder) if file.first == file.last]
    is_full = len(single) >= STEPS_A_FILE or sum(file.path.stat().st_size for file in single) >= full
    if not is_full or len(single) == 1:
        return
    table = pa.concat_tables(_read(file.path, SCHEMA.names) for file in single)
    _write(folder / _name(single[0].first, single[-1].last), table)
    for file in single:
        file.path.unlink()


def _read(path: Path, columns: Sequence[str], chosen: pc.Expression | None = None) -> pa.Table:
    try:
        return pq.read_table(path, columns=list(columns), filters=chosen)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); move it away to go on without its samples") from error


def _write(path: Path, table: pa.Table) -> None:
    part = path.with_suffix(".part")
    pq.write_table(table, part, compression="zstd")
    os.replace(part, path)


def _name(first: int, last: int) -> str:
    return f"{first:06d}-{last:06d}.parquet"


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _numbers(values: Mapping[str, float]) -> list[dict[str, Any]]:
    return [{"name": name, "value": float(value)} for name, value in values.items()]
