"""How a run stands, read off directories made by hand."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.commands.cli import main
from orchestrator.config import ConfigError
from orchestrator.run.control import STATUS, Kind, Status, own_release, write_status
from orchestrator.run.folders import lock
from orchestrator.run.standing import look, without_folder

RUNNING = Status(
    at=0.0,
    version=12,
    rollouts=Kind(target=2, workers={"rollout-0": "serving", "rollout-3": "starting"}),
    scorers=Kind(target=1, workers={"reward-0": "serving"}),
    waits={"rollout-3": "rollout-3 needs 1 CPU on one node, and the cluster has 0 of 2 CPUs"},
    release=own_release(),
    host="node-1",
    pid=7,
    job="tiny_cpu-20261127-173000",
)
ROWS = [{"step": step, "step_s": 2.0, "reward": step / 10, "staleness": 1.0, "loss": 0.0} for step in range(1, 13)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a run with a row for each of 12 steps of 80, the last written 90 s ago."""
    (tmp_path / "config.toml").write_text("[loop]\nsteps = 80\nmax_staleness = 1\n")
    rows = tmp_path / "metrics.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    os.utime(rows, (time.time() - 90.5,) * 2)
    return tmp_path


def stands(folder: Path, **changes) -> list[str]:
    write_status(folder, replace(RUNNING, at=time.time(), **changes))
    return look(folder).lines()


def test_five_lines_say_how_a_run_stands(folder: Path):
    assert stands(folder) == [
        "running: step 12 of 80, the last 1:30 min ago, 2:16 min left",  # 68 steps of 2 s
        "reward +1.200, of the first step +0.100",
        "rollouts 1 of 2 serve, 1 starting; scorers 1 of 1 serve; rollout-3 waits for room: rollout-3 needs 1 CPU on "
        "one node, and the cluster has 0 of 2 CPUs",
        "staleness: 1.0 in the mean, 1 at most",
        f"run directory: {folder}, job tiny_cpu-20261127-173000",
    ]


def test_the_same_is_there_as_json(folder: Path, capsys: pytest.CaptureFixture[str]):
    write_status(folder, replace(RUNNING, at=time.time(), state="paused"))
    main(["status", str(folder), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert (said["state"], said["step"], said["reward"], said["left_s"]) == ("paused", 12, 1.2, 136.0)


def test_what_ended_has_no_time_left_and_no_workers(folder: Path):
    first, _, workers, *_ = stands(folder, state="failed", why="NonFiniteStep: loss nan")
    assert first == "failed (NonFiniteStep: loss nan): step 12 of 80, the last 1:30 min ago"
    assert workers == "no workers any more"


def test_a_driver_that_says_nothing_was_killed_or_hangs(folder: Path):
    write_status(folder, replace(RUNNING, at=time.time() - 120.5))
    assert look(folder).lines()[0].startswith("lost (its driver on node-1 has said nothing for 2:00 min: it was killed")
    with lock(folder / ".lock", 0.0):
        first = look(folder).lines()[0]
    assert first.startswith("hangs (its driver on node-1 has said nothing for 2:00 min, and is alive: star-r1 doctor)")


def test_a_run_whose_workers_are_not_ready_is_starting_also_where_one_has_ended_before(folder: Path, tmp_path: Path):
    write_status(folder, replace(RUNNING, at=time.time(), state="stopped"))
    assert look(folder).state == "stopped"
    new = tmp_path / "new"
    new.mkdir()
    with lock(folder / ".lock", 0.0), lock(new / ".lock", 0.0):
        assert look(folder).state == "starting"
        assert look(new).lines()[0] == "starting (its workers are not ready yet): step 0 of ?"


def test_a_supervised_run_has_a_loss_and_no_reward(folder: Path):
    rows = [{"step": 1, "step_s": 2.0, "loss": 1.25}]
    (folder / "metrics.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert stands(folder)[1] == "loss 1.2500"


def test_a_job_that_ended_before_it_had_a_directory_says_why():
    found = without_folder("first", True, "Job entrypoint command failed with exit code 2\nstar-r1: ...")
    assert found.lines()[0] == "failed (Job entrypoint command failed with exit code 2): step 0 of ?"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.toml", None, "holds no run that has begun: it has no config.toml; give the run directory"),
        ("config.toml", "[loop\n", "its config.toml or metrics.jsonl is not whole"),
        ("metrics.jsonl", '{"step": 1\n', "its config.toml or metrics.jsonl is not whole"),
        (STATUS, '{"at": 1.0, "vers', "is not whole .*; a run that goes on writes it again within seconds"),
        (STATUS, json.dumps({"release": own_release()}), "is not whole"),
        (STATUS, "[]", "is not whole"),
        (STATUS, json.dumps({"release": "9.9.9"}), rf"is of star-r1 9.9.9, and this is {own_release()}; give the"),
        (STATUS, "{}", "is of star-r1 an older one, and this is"),
    ],
)
@pytest.mark.parametrize("command", ["status", "pause"])
def test_a_directory_that_is_half_written_is_said(folder, file, text, message, command, capsys):
    write_status(folder, replace(RUNNING, at=time.time()))
    (folder / file).unlink()
    if text is not None:
        (folder / file).write_text(text)
    with pytest.raises(ConfigError, match=message):
        look(folder)
    with pytest.raises(SystemExit) as ended:
        main([command, str(folder)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("star-r1: ")
    assert said.count("\n") == 1
