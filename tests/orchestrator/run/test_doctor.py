"""What is gathered of a run: all that can be had, and no secret."""

import json
import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.commands.cli import main
from orchestrator.run.control import write_status
from orchestrator.run.doctor import environment, examine, processes_of, read, without_secrets
from orchestrator.run.folders import lock
from orchestrator.run.journal import Journal
from records.samples import PolicyVersion
from tests.orchestrator.run.test_standing import RUNNING


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a run that goes on, whose driver is this process; two of its workers have come and one has gone."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    folder = tmp_path / "run"
    (folder / "stacks").mkdir(parents=True)
    (folder / "config.toml").write_text("[loop]\nsteps = 80\nmax_staleness = 1\n")
    (folder / "run.json").write_text('{"kind": "train"}')
    (folder / "stacks" / "rollout-1.txt").write_text("where it hung")
    journal = Journal(folder)
    journal.began(PolicyVersion(0))
    for number, worker in enumerate(["rollout-0", "learner-0 rank 0", "learner-0 rank 1", "rollout-1"]):
        journal.write("runs", worker=worker, address="10.0.0.1", node="node", pid=100 + number)
    for worker in ("learner-0", "rollout-1"):
        journal.write("gone", worker=worker)
    journal.close()
    now = replace(RUNNING, at=time.time(), host=socket.gethostname(), pid=os.getpid())
    write_status(folder, now)
    return folder


def test_processes_are_the_driver_and_the_workers_that_are_there(folder: Path):
    assert [(it.name, it.pid) for it in processes_of(folder)] == [("driver", os.getpid()), ("rollout-0", 100)]


def test_of_a_run_that_has_ended_no_process_is_looked_at(folder: Path):
    """Their numbers may be those of other processes by now."""
    write_status(folder, replace(RUNNING, at=time.time(), state="ended"))
    assert processes_of(folder) == []


def test_of_a_driver_that_hangs_the_workers_are_known(folder: Path):
    write_status(folder, replace(RUNNING, at=time.time() - 60))
    assert processes_of(folder) == []
    with lock(folder / ".lock", 0.0):
        assert [it.name for it in processes_of(folder)] == ["driver", "rollout-0"]


def test_all_of_a_run_is_in_one_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["doctor", str(folder), "--out", str(tmp_path / "it.zip")])
    said = capsys.readouterr().out
    found = read(tmp_path / "it.zip")
    assert said.startswith(f"wrote {tmp_path}/it.zip, {len(found)} files in ")
    assert {"run/config.toml", "run/status.json", "run/journal.jsonl", "run/stacks/rollout-1.txt"} <= found.keys()
    assert found["standing.txt"].startswith("running: step 0 of 80")
    assert json.loads(found["versions.json"])["ray"].startswith("2.")
    assert "test_all_of_a_run_is_in_one_file" in found["workers/driver.txt"]  # its stack
    assert "memory" in found[f"machines/{socket.gethostname()}.txt"]
    assert "others.txt: could not be had: this machine alone was looked at" in said


def test_a_part_that_cannot_be_had_says_why_and_the_others_are_there(folder: Path):
    (folder / "config.toml").unlink()
    (folder / "journal.jsonl").write_text("damage\nmore\nand more\n")
    found = examine(folder)
    assert found["standing.txt"].startswith("could not be had: ConfigError: ")
    assert found["machines.txt"].startswith("could not be had: DamagedJournal: ")
    assert found["run/run.json"] == '{"kind": "train"}'


def test_the_environment_is_kept_without_what_is_secret():
    env = {"RAY_ADDRESS": "10.0.0.1:6379", "RAY_AUTH_TOKEN": "a" * 32, "HF_TOKEN": "hf", "HOME": "/root"}
    env |= {"NCCL_DEBUG": "INFO", "RAY_JOB_CONFIG_JSON_ENV_VAR": '{"env_vars": {"WANDB": "secret"}}'}
    assert environment(env) == "NCCL_DEBUG=INFO\nRAY_ADDRESS=10.0.0.1:6379\n"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("asked with 0123456789abcdef", "asked with (removed)"),
        ('wandb = { api_key = "a1b2c3d4e5f6" }', 'wandb = { api_key = "(removed)" }'),
        ("Authorization: Bearer 00112233445566", "Authorization: Bearer (removed)"),
        ("https://me:secret@host/path", "https://me:(removed)@host/path"),
        ("token hf_abcdefghijklmnopqrstuv!", "token hf_(removed)!"),
        ("max_answer_tokens = 64, tokens_per_s 12345678", "max_answer_tokens = 64, tokens_per_s 12345678"),
    ],
)
def test_what_is_secret_is_taken_out_of_every_file(text: str, left: str):
    assert without_secrets(text, {"MY_TOKEN": "0123456789abcdef", "TOKENIZERS_PARALLELISM": "false"}) == left


def test_a_secret_of_the_environment_is_in_no_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    (folder / "failure-20261127.txt").write_text("ValueError: asked with 0123456789abcdef\n")
    main(["doctor", str(folder), "--out", str(tmp_path / "it.zip")])
    found = read(tmp_path / "it.zip")
    assert found["run/failure-20261127.txt"] == "ValueError: asked with (removed)\n"
    assert not [name for name, text in found.items() if "0123456789abcdef" in text]
