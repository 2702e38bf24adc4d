"""A tiny policy, groups made by hand for it, and learner ranks in processes of their own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from learner.config import LearnerConfig
from learner.policy import load_policy
from records.samples import ScoredGroup
from tests.learner import made_groups, ranks

MakeGroup = Callable[..., ScoredGroup]
RunRanks = Callable[[int, dict[str, dict[str, Any]]], list[dict[str, dict[str, Any]]]]


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny_policy")
    ranks.write_policy(folder)
    return str(folder)


@pytest.fixture
def policy(policy_folder: str) -> Any:
    return load_policy(LearnerConfig(), policy_folder, torch.device("cpu"))


@pytest.fixture(scope="session")
def make_group() -> MakeGroup:
    return made_groups.make_group


@pytest.fixture(scope="session")
def run_ranks(policy_folder: str, tmp_path_factory: pytest.TempPathFactory) -> RunRanks:
    """Of a number of ranks and jobs by name, see `ranks.py`."""
    return lambda world_size, jobs: ranks.run_ranks(
        policy_folder, tmp_path_factory.mktemp(f"ranks_{world_size}"), world_size, jobs
    )
