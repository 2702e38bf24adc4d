"""A tiny policy whose logits are not flat, groups made by hand for it, and learner ranks in processes of their own."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from learner.actor import LearnerRank
from learner.config import LearnerConfig, LearnerJob
from learner.policy import load_policy
from learner.tiny_policy import make_tiny_policy
from tests.learner import made_groups
from tvr.records import (
    ScoredGroup,
)

MakeGroup = Callable[..., ScoredGroup]
RunRanks = Callable[[int, dict[str, dict[str, Any]]], list[dict[str, dict[str, Any]]]]


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Every matrix of the fresh policy is made larger, so that what a token may see changes its log-prob visibly."""
    folder = tmp_path_factory.mktemp("tiny_policy")
    make_tiny_policy(folder, seed=0)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    model.save_pretrained(folder)
    return str(folder)


def make_job(model: str, folder: Path, **settings: Any) -> LearnerJob:
    given = {"temperature": 1.0, "max_answer_tokens": 16, "steps": 10} | settings
    return LearnerJob(model=model, reference=model, folder=str(folder), **given)


@pytest.fixture
def policy(policy_folder: str) -> Any:
    return load_policy(LearnerConfig(), policy_folder, torch.device("cpu"))


@pytest.fixture(scope="session")
def make_group() -> MakeGroup:
    return made_groups.make_group


@pytest.fixture(scope="session")
def run_ranks(policy_folder: str, tmp_path_factory: pytest.TempPathFactory) -> RunRanks:
    """Runs jobs by name on so many ranks (`rank_process.py`); returns each rank's results by name."""

    def run(world_size: int, jobs: dict[str, dict[str, Any]]) -> list[dict[str, dict[str, Any]]]:
        folder = tmp_path_factory.mktemp(f"ranks_{world_size}")
        (folder / "jobs.pickle").write_bytes(pickle.dumps(jobs))
        _, port = LearnerRank(LearnerConfig(), make_job(policy_folder, folder), 0, world_size).address()
        script = Path(__file__).with_name("rank_process.py")
        command = [sys.executable, str(script), policy_folder, str(folder), str(world_size), str(port)]
        running = [
            subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for rank in range(world_size)
        ]
        for rank, process in enumerate(running):
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 0, f"rank {rank} of {world_size}:\n{output[-6000:]}"
        return [pickle.loads((folder / f"rank_{rank}.pickle").read_bytes()) for rank in range(world_size)]

    return run
