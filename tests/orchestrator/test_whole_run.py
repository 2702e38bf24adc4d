"""Whole runs with real engines on the tiny policy: Mitsuba, vLLM, DeepSpeed and Ray, nothing faked."""

import asyncio
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from orchestrator.cluster import connected
from orchestrator.config import RunConfig, load_run_config
from tests.parity import gaps_around_a_publish
from tvr.dataset import load
from tvr.rendered import ensure

pytestmark = pytest.mark.slow
TINY = Path("deploy/runs/tiny_cpu.toml")
SMALL = [
    "loop.groups_per_step=4",
    "data.train=12",
    "data.test=6",
    "rollout.samples_per_prompt=8",
    "rollout.kv_cache_mib=64",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A small data set, rendered once for this module."""
    folder = tmp_path_factory.mktemp("data") / "pairs"
    return ensure(load_run_config(TINY, [*SMALL, f"data.path={folder}"]).data)


def test_a_run_of_three_steps_on_two_ranks(data, tmp_path):
    out = tmp_path / "run"
    settings = [*SMALL, f"data.path={data}", "loop.steps=3", "evaluation.max_samples=6", "learner.ranks=2"]
    command = [sys.executable, "-m", "orchestrator.cli", "train", str(TINY), "--out", str(out)]
    ended = subprocess.run(
        [*command, *(part for setting in settings for part in ("--set", setting))], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "step   3/3  version   3" in ended.stdout
    assert "Basic/ObjAcc" in ended.stdout
    assert f"run directory: {out}" in ended.stdout

    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["version"] for row in rows] == [1, 2, 3]
    assert {tuple(row) for row in rows} == {tuple(rows[0])}  # the same keys every step
    assert all(0 <= row["staleness_max"] <= 1 for row in rows)
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    for row in rows:  # the parts of the reward sum to it
        parts = sum(value for key, value in row.items() if key.startswith("reward/"))
        assert parts == pytest.approx(row["reward"], abs=1e-4)

    reports = json.loads((out / "evaluation.json").read_text())
    assert [report["num_samples"] for report in reports.values()] == [6, 6]
    assert RunConfig.model_validate(tomllib.loads((out / "config.toml").read_text())).loop.steps == 3

    before = AutoModelForImageTextToText.from_pretrained("deploy/models/tiny", dtype=torch.float32)
    after = AutoModelForImageTextToText.from_pretrained(out / "model", dtype=torch.float32)
    assert AutoProcessor.from_pretrained(out / "model").tokenizer.eos_token == "<|im_end|>"
    changed = [
        name
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    ]
    assert any("visual" in name for name in changed)
    assert any("language_model" in name for name in changed)

    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2
    assert "holds a run already" in again.stderr


def test_learner_and_engine_agree_on_every_token_before_and_after_a_publish(data, tmp_path):
    config = load_run_config(TINY, [*SMALL, f"data.path={data}", "loop.steps=1", "learner.learning_rate=1e-3"])
    prompts = load(data, "train")[:4]
    with connected(config):
        gaps = asyncio.run(gaps_around_a_publish(config, prompts, tmp_path))
    assert max(gaps) < 1e-4, gaps
