"""The tiny job on two GPUs, one sampling and one learning, by both transports. Not yet run on a GPU."""

import asyncio
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.cluster.start import connected
from orchestrator.config import load_run_config
from tasks.tvr.data.dataset import load
from tasks.tvr.data.rendered import ensure
from tests.conftest import TWO_GPUS
from tests.orchestrator.small_runs import SMALL, TINY, command
from tests.parity import gaps_around_a_publish

ON_GPU = [
    *("device=gpu", "rollout.dtype=bfloat16", "learner.dtype=bfloat16", "rollout.gpu_memory_utilization=0.5"),
    *("learner.learning_rate=1e-3", "loop.steps=3", "evaluation.max_samples=6"),
]
GAP = 0.3
"""Nats, between two programs that compute in bfloat16."""

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason=TWO_GPUS)
by_both = pytest.mark.parametrize("transport", ["object_store", "nccl"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pairs"
    return ensure(load_run_config(TINY, [*SMALL, f"data.path={folder}"]).data)


@by_both
def test_learner_and_engine_agree_before_and_after_a_publish(data, tmp_path, transport):
    settings = [*SMALL, *ON_GPU, f"data.path={data}", f"rollout.weight_transport={transport}"]
    config = load_run_config(TINY, settings)
    with connected(config):
        gaps = asyncio.run(gaps_around_a_publish(config, load(data, "train")[:4], tmp_path))
    assert max(gaps) < GAP, gaps


@by_both
def test_a_job_of_three_steps_comes_to_its_end(data, tmp_path, transport):
    settings = [*ON_GPU, f"data.path={data}", f"rollout.weight_transport={transport}"]
    ended = subprocess.run(command("train", TINY, tmp_path / "run", settings), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["version"] for row in rows] == [1, 2, 3]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert rows[0]["max_abs_log_ratio"] < 1.0  # of the first step, where nothing is stale
