"""A study goes from cell to cell, and on from wherever it was stopped; commands are faked or trivial."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from orchestrator.config import load_run_config
from orchestrator.study.cells import CellFailed, Study
from orchestrator.study.config import load_study_config
from orchestrator.study.directory import StudyDirectory, open_study_directory
from orchestrator.study.process import last_lines, run_command, share_cores
from orchestrator.study.progress import StudyDisplay, StudyState, time_left
from orchestrator.study.results import StudyResult
from tests.fakes import make_prompt
from tests.orchestrator.study.small_studies import FakeCommands, arm, write_replies, write_study

PROMPTS = [make_prompt(f"{number}/basic/center") for number in range(4)]
ARMS = [arm("STAR-R1", "star"), arm("STAR-SFT", "answer")]
ALL_CALLS = ["eval base", "train star-r1-seed1", "eval star-r1-seed1", "sft star-sft-seed1", "eval star-sft-seed1"]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return begun(tmp_path, seeds=[1])


def begun(folder: Path, seeds: Sequence[int]) -> Study:
    config = load_study_config(write_study(folder / "s.toml", out=str(folder / "out"), seeds=list(seeds), arms=ARMS))
    directory = open_study_directory(config)
    directory.begin(config, {})
    return Study(config, directory, PROMPTS, "star-r1 study s.toml")


def silent(state: StudyState) -> None:
    pass


def test_the_base_is_asked_and_every_cell_is_trained_and_asked(study):
    commands = FakeCommands(PROMPTS)
    result = study.run([commands], silent)
    assert commands.calls == ALL_CALLS
    assert (result.cells_done, result.cells_total) == (3, 3)
    assert [len(each.cells) for each in result.arms] == [1, 1]
    assert result.base is not None
    assert result.base.numbers["TAcc"] == 1 / 4
    assert StudyResult.model_validate_json(study.directory.results.read_text()) == result
    assert study.directory.page.exists()


def test_a_cell_is_trained_by_its_resolved_run_file_and_asked_as_it_was_trained(study):
    seen = []
    fake = FakeCommands(PROMPTS)

    def commands(command, log, tick):
        seen.append(list(command))
        return fake(command, log, tick)

    study.run([commands], silent)
    cells = study.directory.path / "cells"
    sft = load_run_config(cells / "star-sft-seed1.toml")
    assert (sft.seed, sft.loop.groups_per_step, sft.learner.imitation) == (1, 128, "answer")
    run, replies = str(cells / "star-sft-seed1"), str(cells / "star-sft-seed1.replies.jsonl")
    assert seen[3][1:] == ["-m", "orchestrator.commands.cli", "sft", f"{run}.toml", "--out", run, "--resume"]
    assert seen[0][3:6] == ["eval", "--model", "deploy/models/tiny"]
    asked = ["--data", "data/study-test", "--replies", replies, "--max-answer-tokens", "96"]
    assert seen[4][3:] == ["eval", "--model", f"{run}/model", *asked]


def test_a_complete_cell_is_not_run_again(study):
    study.run([FakeCommands(PROMPTS)], silent)
    again = FakeCommands(PROMPTS)
    study.run([again], silent)
    assert again.calls == []


def test_a_cell_that_was_stopped_between_training_and_test_is_only_asked(study):
    with pytest.raises(CellFailed):
        study.run([FakeCommands(PROMPTS, failing=["eval star-r1-seed1"])], silent)
    again = FakeCommands(PROMPTS)
    study.run([again], silent)
    assert again.calls == ALL_CALLS[2:]


def test_a_study_that_grows_by_a_seed_runs_that_seed(study, tmp_path):
    study.run([FakeCommands(PROMPTS)], silent)
    grown = FakeCommands(PROMPTS)
    result = begun(tmp_path, seeds=[1, 2]).run([grown], silent)
    assert grown.calls == [call.replace("seed1", "seed2") for call in ALL_CALLS[1:]]
    assert [cell.seed for cell in result.arms[0].cells] == [1, 2]


def test_a_failing_cell_ends_the_study_with_its_name_log_and_last_lines(study):
    commands = FakeCommands(PROMPTS, failing=["train star-r1-seed1"])
    with pytest.raises(CellFailed) as error:
        study.run([commands], silent)
    assert commands.calls == ALL_CALLS[:2]
    log = study.directory.files("star-r1-seed1").log
    for part in ("cell star-r1-seed1: `star-r1 train ", "ended with status 1", str(log), "first line\nout of memory"):
        assert part in str(error.value)
    assert json.loads(study.directory.results.read_text())["cells_done"] == 1  # the base


def test_the_seconds_of_stopped_commands_count(study):
    files = study.directory.files("star-r1-seed1")
    files.seconds.write_text('{"train": 1000.0}')
    result = study.run([FakeCommands(PROMPTS)], silent)
    seconds = result.arms[0].cells[0].seconds
    assert seconds.training == 4.0  # two steps of 2 s
    assert 996.0 <= seconds.set_up < 1006.0
    assert 0.0 <= seconds.test < 10.0


def test_checkpoints_of_a_complete_cell_are_removed(study):
    study.run([FakeCommands(PROMPTS)], silent)
    run = study.directory.files("star-r1-seed1").run
    assert (run / "metrics.jsonl").exists()
    assert not (run / "checkpoints").exists()


def test_the_page_alone_reads_the_cells_once_more_and_trains_nothing(study):
    study.run([FakeCommands(PROMPTS)], silent)
    write_replies(study.directory.files("star-r1-seed1").replies, PROMPTS, right=3)
    before = study.results()["star-r1-seed1"]
    result = study.write_again()
    cell = result.arms[0].cells[0]
    assert (before.numbers["TAcc"], cell.numbers["TAcc"]) == (1 / 4, 3 / 4)
    assert (cell.date, cell.commit, cell.seconds) == (before.date, before.commit, before.seconds)


def test_states_say_which_cell_and_how_far(study):
    states = []
    study.run([FakeCommands(PROMPTS)], states.append)
    assert [(state.complete, state.cells) for state in states] == [(0, 3)] * 3 + [(1, 3)] * 6 + [(2, 3)] * 6
    assert {state.place for state in states} == {0}
    last_of_training = states[5]
    assert (last_of_training.name, last_of_training.what) == ("star-r1-seed1", "step")
    assert (last_of_training.done, last_of_training.total) == (2, 60)
    assert (states[-1].what, states[-1].done, states[-1].total) == ("test pairs", 4, 4)
    assert states[5].left_s is None
    assert states[-1].left_s is not None


def test_time_left_is_that_of_the_cells_that_wait_and_the_rest_of_this_one():
    assert time_left([], turns=3, elapsed_s=10.0) is None
    assert time_left([100.0, 200.0], turns=2, elapsed_s=30.0) == 2 * 150 + 120  # 150 s a cell in the mean
    assert time_left([100.0], turns=0, elapsed_s=130.0) == 0.0


def test_cells_that_are_complete_do_not_wait(study, tmp_path):
    study.run([FakeCommands(PROMPTS)], silent)
    for name, seconds in (("star-r1-seed1", 1000), ("star-sft-seed1", 3000)):
        files = study.directory.files(name)
        files.seconds.write_text(json.dumps({"train": seconds, "test": 0.0}))
    study.write_again()
    states = []
    begun(tmp_path, seeds=[2, 1]).run([FakeCommands(PROMPTS)], states.append)  # the new cells come first
    assert (states[0].name, states[0].complete, states[0].cells) == ("star-r1-seed2", 3, 5)
    assert states[0].left_s == pytest.approx(2 * 2000, abs=10)  # itself and one other, at 2,000 s in the mean


def make_state(**changes) -> StudyState:
    state = {"place": 0, "complete": 1, "cells": 25, "name": "star-r1-seed1", "what": "step", "done": 0, "total": 60}
    return StudyState(**state | {"elapsed_s": 65.0, "left_s": 3725.0} | changes)


def test_off_a_terminal_every_part_of_a_cell_has_a_line(capsys):
    with StudyDisplay(Console(width=200)) as display:
        for changes in ({}, {"done": 12}, {"place": 1, "name": "naive-seed1"}, {"what": "test pairs"}):
            display(make_state(**changes))
    lines = capsys.readouterr().out.splitlines()
    end = "of 60, 0:01:05; 1 of 25 cells complete, left 1:02:05"
    assert lines == [  # step 12 comes too soon after step 0
        f"star-r1-seed1: step 0 {end}",
        f"naive-seed1: step 0 {end}",
        f"star-r1-seed1: test pairs 0 {end}",
    ]


def test_on_a_terminal_every_place_has_a_bar():
    out = io.StringIO()
    with StudyDisplay(Console(file=out, force_terminal=True, width=160)) as display:
        for changes in ({}, {"place": 1, "name": "naive-seed1", "done": 3}, {"done": 7}):
            display(make_state(**changes))
    last = out.getvalue().rsplit("cells", 1)[1]
    for part in ("1/25", "left 1:02:05", "star-r1-seed1", "7/60", "naive-seed1", "3/60"):
        assert part in last


class TwoAtOnce:
    """Runs commands like *fake*, each of which waits until another runs beside it, but for *alone*."""

    def __init__(self, fake: FakeCommands, alone: Sequence[str] = ()) -> None:
        self.fake = fake
        self.alone = alone
        self.both = threading.Barrier(2, timeout=20)

    def __call__(self, command, log, tick):
        if log.stem not in self.alone:
            self.both.wait()
        return self.fake(command, log, tick)


def test_two_cells_run_side_by_side(tmp_path):
    study = begun(tmp_path, seeds=[1, 2])
    commands, states = TwoAtOnce(FakeCommands(PROMPTS), alone=["base"]), []
    result = study.run([commands, commands], states.append)
    assert result.cells_done == 5
    both_seeds = {call.replace("seed1", seed) for call in ALL_CALLS for seed in ("seed1", "seed2")}
    assert sorted(commands.fake.calls) == sorted(both_seeds)
    assert {state.place for state in states} == {0, 1}


def test_a_failing_cell_stops_the_one_beside_it(study):
    began, ended = threading.Event(), threading.Event()

    def long(command, log, tick):
        began.set()
        try:
            while True:
                tick()
        finally:
            ended.set()

    def failing(command, log, tick):
        assert began.wait(20)
        return 1

    with pytest.raises(CellFailed, match="cell star-r1-seed1"):
        study.run([long, failing], silent)
    assert ended.is_set()


def test_cores_are_shared_out_among_the_places(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 2, 7, 5, 6})
    assert share_cores(1) == [[2, 4, 5, 6, 7]]
    assert share_cores(2) == [[2, 5, 7], [4, 6]]
    with pytest.raises(ValueError, match="6 cells at once need as many CPU cores, and there are 5"):
        share_cores(6)


def test_a_command_uses_its_cores_only(tmp_path):
    core = max(os.sched_getaffinity(0))
    command = [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"]
    assert run_command(command, tmp_path / "log", lambda: None, cores=[core]) == 0
    assert (tmp_path / "log").read_text() == f"{{{core}}}\n"


def test_a_command_says_its_status_and_its_words_go_to_the_log(tmp_path):
    log = tmp_path / "log"
    log.write_text("earlier\n")
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    assert run_command([sys.executable, "-c", code], log, lambda: None) == 3
    assert set(log.read_text().split()) == {"earlier", "out", "err"}
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    assert last_lines(log).splitlines() == [f"line {number}" for number in range(85, 100)]


def test_a_command_ends_when_waiting_for_it_is_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.study.process.TICK_S", 0.01)

    def interrupt() -> None:
        raise KeyboardInterrupt

    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    with pytest.raises(KeyboardInterrupt):
        run_command([sys.executable, "-c", code], tmp_path / "log", interrupt)
    assert not [child for child in psutil.Process().children() if "time.sleep(600)" in " ".join(child.cmdline())]


def test_a_command_ends_when_its_study_is_killed(tmp_path):
    inner = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    outer = (
        "import sys; from pathlib import Path; from orchestrator.study.process import run_command\n"
        f"run_command([sys.executable, '-c', {inner!r}], Path({str(tmp_path / 'log')!r}), lambda: None)"
    )
    process = subprocess.Popen([sys.executable, "-c", outer])
    pid = until_written(tmp_path / "log")
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def until_written(path: Path) -> int:
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.05)  # another process, which no event of ours can announce
    return int(path.read_text())


def test_two_studies_do_not_run_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.study.directory.LOCK_WAIT_S", 0.0)
    directory = StudyDirectory(tmp_path)
    with directory.locked(), pytest.raises(ValueError, match="another study runs in it; wait, or end it"):
        directory.locked().__enter__()
    with directory.locked():
        pass


def test_a_command_keeps_the_lock_of_its_study(tmp_path):
    directory = StudyDirectory(tmp_path)
    code = "import os, sys; os.fstat(int(sys.argv[1]))"
    with directory.locked() as lock:
        command = [sys.executable, "-c", code, str(lock)]
        assert partial(run_command, inherited=[lock])(command, tmp_path / "log", lambda: None) == 0
        assert run_command(command, tmp_path / "log", lambda: None) == 1
        os.fstat(lock)


def test_the_study_in_its_folder_is_a_study_file(study):
    content = tomllib.loads((study.directory.path / "study.toml").read_text())
    assert "rule" not in content["reward_service"]
    again = load_study_config(study.directory.path / "study.toml")
    assert again == study.config
