"""What is found out about a worker's machine before weights are loaded."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.cluster.machine import UnfitMachine, check_folder, check_gpus, check_shared_memory
from orchestrator.cluster.on_node import last_lines


def say(monkeypatch: pytest.MonkeyPatch, stdout: str = "", returncode: int = 0, stderr: str = "") -> None:
    answer = SimpleNamespace(stdout=stdout, stderr=stderr, returncode=returncode)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)


def gpus(*free: float) -> str:
    found = [{"name": f"GPU {number}", "free": gb * 1e9, "total": 80e9} for number, gb in enumerate(free)]
    return "a warning of torch\n" + json.dumps({"missing": None, "gpus": found})


def test_a_gpu_that_another_process_fills_is_named(monkeypatch):
    say(monkeypatch, gpus(79.0, 71.9))
    with pytest.raises(UnfitMachine, match=r"GPU 1 has 71.9 of 80.0 GB free, and a learner rank asks for 72.0: "):
        check_gpus(0.9, "a learner rank")


def test_gpus_that_are_free_enough_are_taken(monkeypatch):
    say(monkeypatch, gpus(79.0, 72.0))
    check_gpus(0.9, "a learner rank")


def test_a_cuda_that_does_not_answer_says_why(monkeypatch):
    say(monkeypatch, json.dumps({"missing": "the driver is too old", "gpus": []}))
    with pytest.raises(UnfitMachine, match=r"^the driver is too old$"):
        check_gpus(0.9, "a learner rank")


def test_a_torch_that_cannot_be_asked_says_why(monkeypatch):
    say(monkeypatch, returncode=1, stderr="ImportError: libcudart.so.13")
    with pytest.raises(UnfitMachine, match=r"could not be asked: ImportError: libcudart\.so\.13"):
        check_gpus(0.9, "a learner rank")


@pytest.mark.slow
def test_the_question_is_answered_by_a_process_of_its_own():
    asked = subprocess.run(
        [sys.executable, "-m", "orchestrator.cluster.machine"], capture_output=True, text=True, check=True
    )
    found = json.loads(asked.stdout.splitlines()[-1])
    assert (found["missing"] is None) == bool(found["gpus"])


def test_shared_memory_that_is_too_small_is_refused_with_the_remedy(monkeypatch):
    usage = SimpleNamespace(free=64_000_000, total=67_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    check_shared_memory(Path("/dev/shm"), 64_000_000, "the pictures of 2 rollout workers")
    with pytest.raises(
        UnfitMachine,
        match=r"/dev/shm has 0.06 of 0.07 GB free, and the pictures of 2 rollout workers need 3.00; .*--shm-size=4g",
    ):
        check_shared_memory(Path("/dev/shm"), 3_000_000_000, "the pictures of 2 rollout workers")


def test_the_last_lines_of_a_long_log_are_those_of_its_end(tmp_path):
    log = tmp_path / "log"
    log.write_text("".join(f"{number}\n\n" for number in range(10_000)) + "the end, not whole")
    assert last_lines(str(log), 3) == ["9998", "9999", "the end, not whole"]
    assert last_lines(str(log), 10**6)[0] == "0"


def test_a_model_that_is_on_another_node_only_is_named(tmp_path):
    check_folder(tmp_path, "the model")
    with pytest.raises(UnfitMachine, match=r"gone, the model, is not there; give a path .* or copy it to every node"):
        check_folder(tmp_path / "gone", "the model")
