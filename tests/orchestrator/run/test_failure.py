"""What is said where a run fails."""

import errno
import shlex
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from learner.engine import NonFiniteStep
from orchestrator.commands import cli
from orchestrator.commands.cli import main
from orchestrator.run import training
from orchestrator.run.failure import explain
from orchestrator.run.journal import Journal
from orchestrator.supervision.supervisor import FleetLost
from records.samples import PolicyVersion
from tests.faults.settings import settings
from tests.orchestrator.run.test_journal import write_steps
from tests.orchestrator.small_runs import TINY

COMMAND = ["train", "a run.toml", "--set", "loop.steps=3", "--resume"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a run that has made two steps, and no checkpoint."""
    (tmp_path / "config.toml").touch()
    journal = Journal(tmp_path)
    journal.began(PolicyVersion(0))
    write_steps(journal, range(1, 3))
    return tmp_path


def test_the_first_error_of_parallel_tasks_is_said_with_what_was_kept_and_what_to_do(folder: Path):
    error = FleetLost(
        "rollout", "3 failures in a row, the last of rollout-2: it ended\nthe last lines of /x.log:\n  no"
    )
    group = ExceptionGroup("unhandled errors", [ExceptionGroup("again", [error, ValueError("later")])])
    *said, kept, command, where = explain(group, "train", folder, COMMAND).splitlines()
    assert said == [
        "train failed: FleetLost: rollout: 3 failures in a row, the last of rollout-2: it ended",
        "the last lines of /x.log:",
        "  no",
    ]
    assert kept == "kept: no checkpoint yet, and the groups of 2 steps behind it, which are not sampled again"
    words = shlex.split(command.removeprefix("to go on: "))
    assert words == ["star-r1", "train", "a run.toml", "--set", "loop.steps=3", "--out", str(folder), "--resume"]
    (path,) = folder.glob("failure-*.txt")
    assert where == f"the whole text: {path}"
    assert "later" in path.read_text()


def test_what_a_worker_raised_is_said_and_not_what_ray_made_of_it(folder: Path):
    cause = NonFiniteStep("step 3: the loss is nan")
    error = RayTaskError("step", "Traceback: a hundred lines", cause).as_instanceof_cause()
    said = explain(error, "train", folder, ["train", "run.toml", "--out", "given"])
    assert said.startswith("train failed: NonFiniteStep: step 3: the loss is nan\nkept: ")
    assert "to go on: star-r1 train run.toml --out given --resume" in said


def test_a_full_disk_is_said_with_the_file_and_the_remedy(folder: Path):
    error = OSError(errno.ENOSPC, "No space left on device", "/shared/run/journal.jsonl")
    first, remedy, *_ = explain(error, "train", folder, COMMAND).splitlines()
    assert first == "train failed: OSError: [Errno 28] No space left on device: '/shared/run/journal.jsonl'"
    assert remedy == "the disk is full: make room there, and go on"


def test_of_a_run_that_had_not_begun_nothing_is_written(tmp_path: Path):
    said = explain(RuntimeError("no"), "sft", tmp_path, COMMAND)
    assert said == "sft failed: RuntimeError: no\nnothing had begun; the traceback: the same command with --debug"
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_ends_with_a_message_and_with_debug_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    async def fail(*_: object) -> None:
        raise ZeroDivisionError("of something")

    monkeypatch.setattr(training, "run_training", fail)
    command = ["train", str(TINY), "--out", str(tmp_path / "run"), "--set", settings(tmp_path, 1)[1]]
    monkeypatch.setattr(cli.sys, "argv", ["star-r1", *command])
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("star-r1: train failed: ZeroDivisionError: of something\n")
    assert "Traceback" not in said
    with pytest.raises(ZeroDivisionError):
        main([*command, "--debug"])
