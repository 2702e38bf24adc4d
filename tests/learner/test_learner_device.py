"""What an engine does on a GPU and not on a CPU, as far as it can be seen without one."""

import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from learner import engine
from learner.actor import LearnerRank
from learner.config import LearnerConfig
from learner.engine import Engine, choose_device, make_optimizer, zero_settings
from learner.head import logits_at_once
from tests.learner.ranks import make_job

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A GPU that answers; what the allocator is told."""
    told: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", told.append)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    return told


def test_a_learner_given_a_gpu_that_does_not_answer_ends(
    policy_folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("learner.engine.missing_cuda", lambda: "torch finds none (the driver is too old)")
    monkeypatch.setattr("learner.engine._join_process_group", lambda *_: pytest.fail("it went on"))
    job = make_job(policy_folder, tmp_path, device="gpu")
    with pytest.raises(RuntimeError, match=r"^the learner was given a GPU, and torch finds none \(the driver"):
        Engine(LearnerConfig(), job, rank=0, world_size=1, master_addr="127.0.0.1", master_port=1)


def test_a_learner_of_a_cpu_run_leaves_a_gpu_alone(settings: list[str], tmp_path: Path) -> None:
    assert choose_device(make_job("m", tmp_path)) == CPU
    assert settings == []


def test_a_learner_of_a_gpu_run_takes_the_one_it_sees(settings: list[str], tmp_path: Path) -> None:
    assert choose_device(make_job("m", tmp_path, device="gpu")) == GPU
    assert settings == ["expandable_segments:True"]


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_users_settings_of_the_allocator_stay(
    name: str, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "max_split_size_mb:64")
    choose_device(make_job("m", tmp_path, device="gpu"))
    assert settings == []


@pytest.mark.parametrize(("device", "looked_up", "backend"), [(CPU, ["deepspeed_shm_comm"], "gloo"), (GPU, [], "nccl")])
def test_only_a_learner_on_a_cpu_looks_at_deepspeeds_operators(
    device: torch.device,
    looked_up: list[str],
    backend: str,
    policy_folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ, DS_ACCELERATOR="cpu"))
    import deepspeed

    table: dict[str, bool] = {}
    joined: list[tuple[Any, Any]] = []
    monkeypatch.setattr(deepspeed.ops, "__compatible_ops__", table)
    monkeypatch.setattr(deepspeed, "init_distributed", lambda backend, **given: joined.append((backend, None)))
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, **given: joined.append((backend, given["timeout"]))
    )
    host = LearnerRank(LearnerConfig(), make_job(policy_folder, tmp_path), 0, 1)
    engine._join_process_group(LearnerConfig(timeout_s=5), device, 0, 1, *host.host_meeting())
    assert list(table) == looked_up
    assert joined == [(backend, timedelta(seconds=5)), (backend, None)]


def test_nobody_else_can_take_the_port_at_which_the_ranks_shall_meet(policy_folder: str, tmp_path: Path) -> None:
    host = LearnerRank(LearnerConfig(), make_job(policy_folder, tmp_path), 0, 1)
    _, port = host.host_meeting()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("", port))


def test_only_an_offloaded_optimizer_is_fused() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    assert make_optimizer(LearnerConfig(offload_optimizer=True), [weight]).param_groups[0]["fused"] is True
    assert make_optimizer(LearnerConfig(), [weight]).param_groups[0]["fused"] is None


def test_offloaded_states_are_pinned_for_a_gpu_only() -> None:
    config = LearnerConfig(offload_optimizer=True, zero_stage=3)
    assert zero_settings(config, GPU) == {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": True}}
    assert zero_settings(config, CPU) == {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": False}}
    assert zero_settings(LearnerConfig(), GPU) == {"stage": 2}


def test_a_gpu_holds_2_gb_of_logits_and_a_cpu_256_mb() -> None:
    assert (4 * logits_at_once(GPU), 4 * logits_at_once(CPU)) == (2 * 1024**3, 256 * 1024**2)  # float32
