"""A tiny policy whose logits are not flat, and learner ranks for it in processes of their own."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from learner.actor import LearnerRank
from learner.config import LearnerConfig, LearnerJob
from tiny_policy.make import make_tiny_policy


def write_policy(folder: Path) -> None:
    """Every matrix of the fresh policy is made larger, so that what a token may see changes its log-prob visibly."""
    make_tiny_policy(folder, seed=0)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    model.save_pretrained(folder)


def make_job(model: str, folder: Path, **settings: Any) -> LearnerJob:
    given = {"temperature": 1.0, "max_answer_tokens": 16, "steps": 10} | settings
    return LearnerJob(model=model, reference=model, folder=str(folder), **given)


def run_ranks(
    policy: str, folder: Path, world_size: int, jobs: dict[str, dict[str, Any]]
) -> list[dict[str, dict[str, Any]]]:
    """Runs *jobs* by name (`rank_process.py`) on so many ranks, in *folder*; returns each rank's results by name."""
    (folder / "jobs.pickle").write_bytes(pickle.dumps(jobs))
    host = LearnerRank(LearnerConfig(), make_job(policy, folder), 0, world_size)  # holds the meeting until all are done
    _, port = host.host_meeting()
    script = Path(__file__).with_name("rank_process.py")
    command = [sys.executable, str(script), policy, str(folder), str(world_size), str(port)]
    running = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(world_size)
    ]
    for rank, process in enumerate(running):
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, f"rank {rank} of {world_size}:\n{output[-6000:]}"
    return [pickle.loads((folder / f"rank_{rank}.pickle").read_bytes()) for rank in range(world_size)]
