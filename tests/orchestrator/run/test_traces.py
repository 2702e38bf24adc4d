"""What was sampled, as it is kept and read again."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from orchestrator.config import TracesConfig
from orchestrator.run import traces
from orchestrator.run.traces import SCHEMA, STEPS_A_FILE, TRACES, Traces, is_kept, read_traces
from records.samples import Origin, PolicyVersion, SampleTimes, ScoredGroup, StepReport, VersionSpan
from tasks.tvr.task import TASK
from tests.fakes import make_group, make_prompt, make_score

MALFORMED = "0.color.blue"


class Told:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, event: str, **facts: Any) -> None:
        self.events.append((event, facts))


def report(step: int, logprobs: tuple[tuple[np.ndarray, ...], ...] = ()) -> StepReport:
    return StepReport(version=PolicyVersion(step), loss=0.0, grad_norm=1.0, tokens=4, logprobs=logprobs)


def scored(name: str, version: int = 0) -> ScoredGroup:
    """Two samples of two tokens, the second of them malformed and, by its last token, of the next version."""
    group = make_group(make_prompt(name), version)
    first, second = group.samples
    spans = tuple(VersionSpan(version=PolicyVersion(version + at), start=at, end=at + 1) for at in range(2))
    second = replace(second, text=MALFORMED, trace=replace(second.trace, versions=spans))
    times = SampleTimes(first_token=101.0, ended=102.5)
    group = replace(group, samples=(replace(first, times=times), replace(second, times=times)))
    scores = (make_score(6.0), make_score(-1.0, MALFORMED))
    return ScoredGroup(
        group=group, scores=scores, origin=Origin(worker="rollout-1", asked=100.0, scored=(103.0, 104.0))
    )


def opened(folder: Path, told: Told | None = None, after: int = 0, **config: Any) -> Traces:
    return Traces(folder, TracesConfig(**config), TASK, told or Told(), PolicyVersion(after))


def keep(folder: Path, steps: range, groups: int = 1, **options: Any) -> None:
    kept = opened(folder, **options)
    for step in steps:
        kept.keep(report(step), [scored(f"{step}/{place}") for place in range(groups)], trained_at=105.0)
        kept._thread.submit(lambda: None).result()  # one after another, as steps come
    kept.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / TRACES).iterdir())


def test_a_row_has_what_was_sampled_learned_and_read(tmp_path):
    kept = opened(tmp_path)
    learned = np.array([-0.6, -0.4], np.float32)
    kept.keep(report(3, ((learned, learned), ())), [scored("a/basic/left", 1), scored("b/basic/left", 2)], 105.0)
    kept.close()
    rows = read_traces(tmp_path).to_pylist()
    assert [(row["step"], row["ticket"], row["sample"], row["prompt_id"]) for row in rows] == [
        (3, 4, 0, "a/basic/left"),
        (3, 4, 1, "a/basic/left"),
        (3, 5, 0, "b/basic/left"),
        (3, 5, 1, "b/basic/left"),
    ]
    first, second, _, last = rows
    assert (first["answer"], first["malformed"], first["reward"]) == ("0.color.blue", None, 6.0)
    assert second["answer"] is None
    assert second["malformed"].startswith("the tags are none")
    assert second["reply"] == MALFORMED
    assert first["token_ids"] == [0, 1]
    assert (first["versions"], second["versions"], last["versions"]) == ([1, 1], [1, 2], [2, 3])
    assert first["logprobs"] == [-0.5, -0.5]
    assert first["learner_logprobs"] == pytest.approx([-0.6, -0.4])
    assert last["learner_logprobs"] is None  # nothing was learned from its group
    assert first["terms"] == [{"name": "all", "value": 6.0}]
    assert {each["name"]: each["value"] for each in second["found"]}["well_formed"] == 0.0
    moments = ("asked_at", "first_token_at", "ended_at", "scored_at", "trained_at")
    assert [second[moment].timestamp() for moment in moments] == [100.0, 101.0, 102.5, 104.0, 105.0]
    assert (first["worker"], first["finish"], first["prompt_tokens"]) == ("rollout-1", "stop", 3)


def test_what_nobody_sampled_has_no_times(tmp_path):
    kept = opened(tmp_path)
    kept.keep(report(1), [ScoredGroup(group=make_group(make_prompt(), 0), scores=(make_score(1.0),) * 2)], 105.0)
    kept.close()
    row = read_traces(tmp_path).to_pylist()[0]
    assert [row[name] for name in ("worker", "asked_at", "first_token_at", "ended_at", "scored_at")] == [None] * 5


def test_pandas_and_datasets_open_the_folder(tmp_path):
    keep(tmp_path, range(1, 4))
    assert len(pd.read_parquet(tmp_path / TRACES)) == 6
    opened = datasets.load_dataset("parquet", data_dir=str(tmp_path / TRACES), cache_dir=str(tmp_path / "cache"))
    assert opened["train"].num_rows == 6
    assert set(opened["train"].column_names) == set(SCHEMA.names)


@pytest.mark.parametrize(("share", "tickets"), [(1.0, [0, 1, 2, 3]), (0.5, [1, 3]), (0.25, [3])])
def test_as_many_groups_are_kept_as_the_share_says(tmp_path, share, tickets):
    keep(tmp_path, range(1, 3), groups=2, share=share)
    assert sorted(set(read_traces(tmp_path)["ticket"].to_pylist())) == tickets
    assert [ticket for ticket in range(4) if is_kept(ticket, share)] == tickets


def test_without_a_share_nothing_is_kept_and_nothing_is_there_to_read(tmp_path):
    keep(tmp_path, range(1, 3), share=0.0)
    assert not (tmp_path / TRACES).exists()
    assert len(read_traces(tmp_path)) == 0


def test_single_steps_are_put_together_and_each_is_there_once(tmp_path):
    keep(tmp_path, range(1, STEPS_A_FILE + 3))
    last = [f"{step:06d}-{step:06d}.parquet" for step in (STEPS_A_FILE + 1, STEPS_A_FILE + 2)]
    assert names(tmp_path) == [f"000001-{STEPS_A_FILE:06d}.parquet", *last]
    steps = [step for step in range(1, STEPS_A_FILE + 3) for _ in range(2)]
    assert read_traces(tmp_path)["step"].to_pylist() == steps


def test_large_steps_are_put_together_sooner(tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "STEPS_A_FILE", 1000)
    size = _size_of_a_step(tmp_path / "probe")
    monkeypatch.setattr(traces, "_MIB", 2 * size)
    (tmp_path / "run").mkdir()
    keep(tmp_path / "run", range(1, 5), file_mib=1)
    assert names(tmp_path / "run") == ["000001-000002.parquet", "000003-000004.parquet"]


def _size_of_a_step(folder: Path) -> int:
    folder.mkdir()
    keep(folder, range(1, 2))
    (path,) = (folder / TRACES).iterdir()
    return path.stat().st_size - 16  # two of them may differ by some bytes


def test_files_that_a_kill_left_beside_the_one_they_were_put_together_in_are_not_read_twice(tmp_path):
    keep(tmp_path, range(1, 4))
    table = read_traces(tmp_path)
    pq.write_table(table, tmp_path / TRACES / "000001-000003.parquet")
    assert read_traces(tmp_path)["step"].to_pylist() == [1, 1, 2, 2, 3, 3]
    keep(tmp_path, range(4, 5), after=3)
    assert names(tmp_path) == ["000001-000003.parquet", "000004-000004.parquet"]


def test_a_file_that_a_kill_left_half_written_is_none(tmp_path):
    keep(tmp_path, range(1, 3))
    (tmp_path / TRACES / "000003-000003.part").write_bytes(b"PAR1")
    assert read_traces(tmp_path)["step"].to_pylist() == [1, 1, 2, 2]
    keep(tmp_path, range(3, 4), after=2)
    assert "000003-000003.part" not in names(tmp_path)


def test_a_run_that_goes_on_forgets_the_steps_that_it_makes_again(tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "STEPS_A_FILE", 4)
    keep(tmp_path, range(1, 7))
    keep(tmp_path, range(3, 4), after=2)
    assert names(tmp_path) == ["000001-000002.parquet", "000003-000003.parquet"]
    assert read_traces(tmp_path)["step"].to_pylist() == [1, 1, 2, 2, 3, 3]


def test_a_damaged_file_is_named(tmp_path):
    keep(tmp_path, range(1, 2))
    (tmp_path / TRACES / "000001-000001.parquet").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"000001-000001.parquet: cannot be read .*move it away"):
        read_traces(tmp_path)


def test_a_disk_that_takes_nothing_costs_the_samples_alone_and_that_is_said(tmp_path, monkeypatch, caplog):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    told = Told()
    keep(tmp_path, range(1, 3), told=told)
    assert [(event, facts["step"]) for event, facts in told.events] == [("traces lost", 1), ("traces lost", 2)]
    assert "No space left" in told.events[0][1]["why"]
    assert len([record for record in caplog.records if "are not kept" in record.message]) == 1


def test_a_disk_that_hangs_holds_nothing_up_and_what_does_not_wait_for_it_is_said(tmp_path, monkeypatch):
    goes_on = threading.Event()
    write = pq.write_table

    def slow(*args: Any, **options: Any) -> None:
        assert goes_on.wait(60)
        write(*args, **options)

    monkeypatch.setattr(pq, "write_table", slow)
    told = Told()
    kept = opened(tmp_path, told)
    for step in range(1, traces.MOST_WAITING + 3):
        kept.keep(report(step), [scored(f"{step}")], 105.0)  # returns at once
    lost = [facts["step"] for _, facts in told.events]
    goes_on.set()
    kept.close()
    assert lost == [traces.MOST_WAITING + 1, traces.MOST_WAITING + 2]
    assert sorted(set(read_traces(tmp_path)["step"].to_pylist())) == list(range(1, traces.MOST_WAITING + 1))
