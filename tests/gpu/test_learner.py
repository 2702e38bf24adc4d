"""A learner rank on a GPU, against the same rank on the CPU. Not yet run on a GPU."""

from itertools import chain
from typing import Any

import numpy as np
import pytest

from learner.nccl import NcclSender
from tests.learner.made_groups import make_group
from tests.learner.plain_step import gradient_difference
from tests.learner.ranks import run_ranks, write_policy
from tests.learner.test_nccl import OneLayer

LOGPROB_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2}
GRADIENT_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2}
GROUPS = (
    make_group(0, [3, 14, 1, 6]),
    make_group(2, [2, 9, 4], sizes=((96, 48), (48, 80))),
    make_group(4, [7, 8, 2], sizes=((112, 80), (112, 80)), objects=2),
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """One step on each device, by device and job."""
    policy = tmp_path_factory.mktemp("policy")
    write_policy(policy)
    found = {}
    for device in ("cpu", "gpu"):
        jobs = {
            f"{dtype}, stage {stage}": {
                "config": {"dtype": dtype, "zero_stage": stage, "row_tokens": 512, "max_grad_norm": 1000.0},
                "steps": [GROUPS],
                "job": {"device": device},
            }
            for dtype in LOGPROB_TOLERANCE
            for stage in (2, 3)
        }
        (found[device],) = run_ranks(str(policy), tmp_path_factory.mktemp(device), 1, jobs)
    return found


@pytest.mark.parametrize("dtype", LOGPROB_TOLERANCE)
@pytest.mark.parametrize("stage", [2, 3])
def test_log_probs_are_those_of_the_cpu_before_and_after_a_step(results, dtype, stage):
    here, there = (results[device][f"{dtype}, stage {stage}"]["logprobs"] for device in ("gpu", "cpu"))
    for ours, expected in zip(here, there, strict=True):  # before the step, and after
        for mine, theirs in zip(chain(*ours), chain(*expected), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=LOGPROB_TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", GRADIENT_TOLERANCE)
@pytest.mark.parametrize("stage", [2, 3])
def test_the_gradient_is_that_of_the_cpu(results, dtype, stage):
    here, there = (results[device][f"{dtype}, stage {stage}"]["gradient"] for device in ("gpu", "cpu"))
    assert gradient_difference(here, there) < GRADIENT_TOLERANCE[dtype]


def test_vllm_takes_what_rank_0_gives_it():
    """A group of one sends to nobody: this shows that vLLM's interface is the one we call, not that weights arrive."""
    NcclSender(OneLayer(), rank=0, address="127.0.0.1", port=29555, world_size=1).send()
