"""Runs made up for tests of the page, in memory and on the disk."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w

from orchestrator.report.run_data import RunData
from orchestrator.run.journal import Event, line_of
from orchestrator.run.traces import SCHEMA, TRACES
from records.samples import Prompt
from tasks.tvr.task import TASK
from tests.fakes import TRUE_REPLY, make_prompt

LOOP = {"steps": 4, "groups_per_step": 2, "max_staleness": 1}
CONFIG = {"task": "tvr", "model": "none", "loop": LOOP, "data": {"path": "gone"}}
BAD = "<script>document.body.remove()</script><img src=x onerror=alert(1)></script>"


def event(name: str, at: float, **facts: Any) -> dict[str, Any]:
    return {"event": name, "at": at, **facts}


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def sample(step: int, ticket: int, index: int, **changes: Any) -> dict[str, Any]:
    """A row of the traces: three tokens of the version before *step*, asked at 100 s times *step*, scored 4 s later."""
    start = 100.0 * step
    return {
        "step": step,
        "ticket": ticket,
        "prompt_id": f"{ticket % 2}/basic/center",
        "sample": index,
        "worker": "rollout-0",
        "asked_at": moment(start),
        "first_token_at": moment(start + 1),
        "ended_at": moment(start + 3),
        "scored_at": moment(start + 4),
        "trained_at": moment(start + 9),
        "finish": "stop",
        "prompt_tokens": 7,
        "token_ids": [5, 6, 7],
        "versions": [step - 1] * 3,
        "logprobs": [-0.5] * 3,
        "learner_logprobs": [-0.5, -0.25, -1.5],
        "reply": TRUE_REPLY,
        "answer": "0.color.blue",
        "malformed": None,
        "reward": 6.0,
        "terms": [{"name": "format", "value": 1.0}, {"name": "value", "value": 5.0}],
        "found": [],
        **changes,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def made_up(
    rows: Sequence[Mapping[str, float]] = (),
    events: Sequence[Mapping[str, Any]] = (),
    samples: Sequence[Mapping[str, Any]] = (),
    prompts: Mapping[str, Prompt] | None = None,
    **changes: Any,
) -> RunData:
    known = {name: make_prompt(name) for name in {row["prompt_id"] for row in samples}}
    values: dict[str, Any] = {
        "name": "try",
        "config": CONFIG,
        "data_identity": "made up",
        "task": TASK,
        "rows": rows,
        "events": events,
        "evaluations": {},
        "status_at": None,
        "traces": table(samples),
        "traces_total": len(samples),
        "prompts": known if prompts is None else prompts,
        "tokens": {5: "five", 6: "six"}.get,
        "notes": (),
    }
    return RunData(**values | changes)


def write_run(
    folder: Path,
    rows: Sequence[Mapping[str, float]] = (),
    events: Sequence[Mapping[str, Any]] = (),
    samples: Sequence[Mapping[str, Any]] = (),
    **config: Any,
) -> Path:
    """A run directory."""
    (folder / TRACES).mkdir(parents=True)
    (folder / "config.toml").write_text(tomli_w.dumps(CONFIG | config))
    (folder / "run.json").write_text(json.dumps({"kind": "train", "data": "made up"}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [line_of(Event(each["event"], {key: each[key] for key in each if key != "event"})) for each in events]
    (folder / "journal.jsonl").write_bytes(b"".join(lines))
    for step in sorted({row["step"] for row in samples}):
        of_step = table([row for row in samples if row["step"] == step])
        pq.write_table(of_step, folder / TRACES / f"{step:06d}-{step:06d}.parquet")
    return folder
