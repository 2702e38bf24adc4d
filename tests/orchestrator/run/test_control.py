"""How a running job is scaled: what is asked for, what is done, and what is said."""

import asyncio
import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.commands import manage
from orchestrator.commands.cli import main
from orchestrator.run import control
from orchestrator.run.control import (
    Kind,
    Status,
    Wanted,
    ask,
    controlled,
    is_running,
    own_release,
    read_status,
    read_wanted,
    write_status,
)
from orchestrator.run.failure import root_of
from orchestrator.run.folders import lock

STATUS = Status(
    at=0.0,
    version=12,
    rollouts=Kind(target=2, workers={"rollout-0": "serving", "rollout-3": "starting"}),
    scorers=Kind(target=1, workers={"reward-0": "serving"}),
    waits={"rollout-3": "rollout-3 needs 1 CPU on one node, and the cluster has 0 of 2 CPUs"},
    release=own_release(),
    host="node-1",
    pid=7,
)


class FakeRun:
    """Keeps what it is asked for; *looked* when its status is asked for."""

    def __init__(self) -> None:
        self.asked: list[Wanted] = []

        self.looked = asyncio.Event()

    def do(self, wanted: Wanted) -> None:
        self.asked.append(wanted)

    def status(self) -> Status:

        self.looked.set()
        return replace(STATUS, at=time.time())

    def ended(self, error: BaseException | None) -> Status:
        return replace(
            STATUS, at=time.time(), state="failed" if error else "ended", why=str(root_of(error)) if error else ""
        )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text("[loop]\nsteps = 80\nmax_staleness = 1\n")
    return tmp_path


def test_what_is_asked_for_is_kept_until_something_else_is(folder: Path):
    assert read_wanted(folder) == Wanted()
    ask(folder, Wanted(rollouts=4))
    ask(folder, Wanted(scorers=2))
    assert read_wanted(folder) == Wanted(rollouts=4, scorers=2)
    ask(folder, Wanted(rollouts=1))
    assert read_wanted(folder) == Wanted(rollouts=1, scorers=2)


def test_a_file_of_somebody_else_is_refused(folder: Path):
    (folder / "wanted.json").write_text('{"rollouts": 0}')
    with pytest.raises(ValueError, match=r"wanted.json: is not what star-r1 scale writes"):
        read_wanted(folder)


def test_a_status_is_read_as_it_was_written(folder: Path):
    assert read_status(folder) is None
    write_status(folder, STATUS)
    assert read_status(folder) == STATUS


async def looks(run: FakeRun, more: int) -> None:
    for _ in range(more):
        run.looked.clear()
        await asyncio.wait_for(run.looked.wait(), 10)


async def test_a_run_does_once_what_is_asked_for_and_says_how_it_stands(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(control, "LOOK_S", 0.001)
    run = FakeRun()
    async with controlled(folder, run):
        ask(folder, Wanted(rollouts=3))
        await looks(run, 2)
        ask(folder, Wanted(rollouts=3))
        await looks(run, 2)
        found = read_status(folder)
    assert run.asked == [Wanted(rollouts=3)]
    assert found is not None
    assert replace(found, at=0.0) == STATUS
    assert is_running(found)


async def test_a_run_says_how_it_ended(folder: Path):
    async with controlled(folder, FakeRun()):
        pass
    found = read_status(folder)
    assert found is not None
    assert (found.state, is_running(found)) == ("ended", False)
    with pytest.raises(ExceptionGroup):
        async with controlled(folder, FakeRun()):
            raise ValueError("not finite")
    found = read_status(folder)
    assert found is not None
    assert (found.state, found.why) == ("failed", "not finite")


async def test_how_it_ended_is_written_last(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where the disk is slow to take what the run said before."""
    may_write, written, begun = threading.Event(), threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def slowly(folder: Path, status: Status) -> None:
        if status.state == "running":
            loop.call_soon_threadsafe(begun.set)
            assert may_write.wait(10)
        write_status(folder, status)
        if status.state == "running":
            written.set()

    monkeypatch.setattr(control, "write_status", slowly)
    async with controlled(folder, FakeRun()):
        await begun.wait()
        loop.call_later(0.05, may_write.set)
    assert await asyncio.to_thread(written.wait, 10)
    found = read_status(folder)
    assert found is not None
    assert found.state == "ended"


async def test_counts_and_pause_hold_for_the_next_driver_and_an_end_does_not(folder: Path, monkeypatch):
    monkeypatch.setattr(control, "LOOK_S", 0.001)
    for wanted in (Wanted(rollouts=3), Wanted(paused=True), Wanted(checkpoint=4), Wanted(stop=True)):
        ask(folder, wanted)
    run = FakeRun()
    async with controlled(folder, run):
        await looks(run, 1)
    assert run.asked == [Wanted(rollouts=3, paused=True)]


def say(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(["scale", *arguments])
    return capsys.readouterr().out


def test_without_a_number_scale_says_how_the_run_stands(folder: Path, capsys: pytest.CaptureFixture[str]):
    write_status(folder, replace(STATUS, at=time.time()))
    assert say(capsys, str(folder)) == (
        "version 12: rollouts 1 of 2 serve, 1 starting; scorers 1 of 1 serve; rollout-3 waits for room: rollout-3 "
        "needs 1 CPU on one node, and the cluster has 0 of 2 CPUs\n"
    )
    assert not (folder / "wanted.json").exists()


def test_a_dry_run_changes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]):
    write_status(folder, replace(STATUS, at=time.time()))
    said = say(capsys, str(folder), "--rollouts", "4", "--scorers", "1", "--dry-run")
    assert said.endswith("would change rollouts: 2 -> 4\n")
    assert say(capsys, str(folder), "--rollouts", "2", "--dry-run").endswith("nothing to change\n")
    assert not (folder / "wanted.json").exists()


def test_scale_waits_until_it_is_so(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(manage, "ASK_EVERY_S", 0.01)
    write_status(folder, replace(STATUS, at=time.time()))
    settled = Kind(target=3, workers={f"rollout-{number}": "serving" for number in range(3)})

    def run() -> None:
        while not (folder / "wanted.json").exists():
            time.sleep(0.005)
        coming = Kind(target=3, workers={**STATUS.rollouts.workers, "rollout-4": "starting"})
        for kind in (coming, settled):
            time.sleep(0.05)
            write_status(folder, replace(STATUS, at=time.time(), rollouts=kind, waits={}))

    running = threading.Thread(target=run)
    running.start()
    lines = say(capsys, str(folder), "--rollouts", "3").splitlines()
    running.join()
    assert lines[-1] == "version 12: rollouts 3 of 3 serve; scorers 1 of 1 serve"
    assert "version 12: rollouts 1 of 3 serve, 2 starting; scorers 1 of 1 serve" in lines
    assert read_wanted(folder) == Wanted(rollouts=3)


@pytest.mark.parametrize(
    ("age_s", "autoscale", "arguments", "message"),
    [
        (
            60.0,
            None,
            ["--rollouts", "2"],
            "no run goes on there: lost, its driver on node-1 has said nothing for 1:00 min: it was killed",
        ),
        (
            0.0,
            [1, 3],
            ["--rollouts", "2"],
            r"--rollouts 2: the run chooses by itself, from 1 to 3 \(rollout.autoscale\)",
        ),
    ],
)
def test_what_cannot_be_scaled_is_said(folder, capsys, age_s, autoscale, arguments, message):
    write_status(folder, replace(STATUS, at=time.time() - age_s, autoscale=autoscale))
    with pytest.raises(SystemExit) as ended:
        main(["scale", str(folder), *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said


def test_two_commands_do_not_scale_at_the_same_time(folder: Path, capsys: pytest.CaptureFixture[str]):
    write_status(folder, replace(STATUS, at=time.time()))
    with lock(folder / ".scale.lock", 0.0), pytest.raises(SystemExit):
        main(["scale", str(folder), "--rollouts", "3"])
    assert "is being scaled by another command; wait for it, or end it" in capsys.readouterr().err


def test_who_is_neither_a_folder_nor_a_job_is_said(capsys: pytest.CaptureFixture[str], monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit):
        main(["scale", "raysubmit_x"])
    assert (
        "raysubmit_x: is no run directory here, and no job that can be asked for: where is the cluster? Give --address"
        in capsys.readouterr().err
    )
