"""Whole runs with real engines on the tiny policy: Mitsuba, vLLM, DeepSpeed and Ray, nothing faked."""

import asyncio
import json
import subprocess
import tomllib

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForImageTextToText, AutoProcessor

from orchestrator.cluster.start import connected
from orchestrator.config import RunConfig, for_task, load_run_config
from tasks.tvr.data.dataset import load
from tasks.tvr.task import TASK
from tests.orchestrator.small_runs import SMALL, TINY, command
from tests.parity import gaps_around_a_publish

pytestmark = pytest.mark.slow


def test_a_run_of_three_steps_on_two_ranks(data, tmp_path):
    out = tmp_path / "run"
    settings = [f"data.path={data}", "loop.steps=3", "learner.ranks=2"]
    settings += ["evaluation.max_samples=6", "evaluation.every_steps=2"]
    settings += ['trackers.use=["tensorboard"]', "trackers.samples_every_steps=2"]
    ended = subprocess.run(command("train", TINY, out, settings), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "step   3/3  version   3" in ended.stdout
    assert "Basic/ObjAcc" in ended.stdout
    assert "\nMean reward of sampled answers\n" in ended.stdout
    assert "\nShares: c careful, e exact, T held-out TAcc\n" in ended.stdout
    assert "Held-out prompts, before and after" in ended.stdout
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
    (beside,) = reports.keys() - {"before", "after"}
    assert [report["num_samples"] for report in reports.values()] == [6, 6, 6]
    assert (reports["before"]["versions"], reports["after"]["versions"]) == ([0, 0], [3, 3])
    assert sorted(path.name for path in (out / "replies").iterdir()) == [
        "after.jsonl",
        "before.jsonl",
        f"{beside.replace(' ', '-')}.jsonl",
    ]
    oldest, newest = reports[beside]["versions"]
    assert 2 <= oldest <= newest <= 3
    assert beside == (f"version {oldest} to {newest}" if newest > oldest else f"version {oldest}")
    tracked = EventAccumulator(str(out / "tensorboard"))
    tracked.Reload()
    logged = {it.step: it.value for it in tracked.Scalars("reward")}
    assert logged == pytest.approx({row["step"]: row["reward"] for row in rows}, abs=1e-4)
    assert sorted(it.step for it in tracked.Scalars("eval/TAcc")) == sorted((0, oldest, 3))
    (shown,) = tracked.Images("samples/0")
    assert (shown.step, shown.height) == (2, 144)
    assert shown.width > 2 * 192
    assert for_task(RunConfig, TASK).model_validate(tomllib.loads((out / "config.toml").read_text())).loop.steps == 3

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

    again = subprocess.run(command("train", TINY, out, []), capture_output=True, text=True)
    assert again.returncode == 2
    assert "holds a run already" in again.stderr


def test_learner_and_engine_agree_on_every_token_before_and_after_a_publish_and_in_a_worker_added_then(data, tmp_path):
    settings = [*SMALL, f"data.path={data}", "loop.steps=1", "learner.learning_rate=1e-3"]
    config = load_run_config(TINY, settings)
    prompts = load(data, "train")[:4]
    with connected(load_run_config(TINY, [*settings, "rollout.workers=2"])):  # room for the one that is added
        gaps = asyncio.run(gaps_around_a_publish(config, prompts, tmp_path, add_worker=True))
    assert len(gaps) == 3
    assert max(gaps) < 1e-4, gaps
