"""Runs that go on after a kill, with real engines on the tiny policy; and supervised runs."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import safetensors.torch
import torch
from transformers import AutoModelForImageTextToText

from orchestrator.run.traces import read_traces
from tasks.tvr.data.dataset import load
from tests.orchestrator.small_runs import SFT, TINY, command

pytestmark = pytest.mark.slow
# No race between sampling and learning.
SYNCHRONOUS = ["loop.max_staleness=0", "checkpoint.every_steps=2", "evaluation.max_samples=6"]
TIMES = ("wait_s", "learn_s", "publish_s", "pause_s", "scoring_full", "scoring_wait_s")
TIMES += ("step_s", "elapsed_s", "tokens_per_s", "samples_per_s")


def run(kind: str, run_file: Path, out: Path, settings: Sequence[str], *flags: str) -> str:
    """What a run that ended well said."""
    ended = subprocess.run(command(kind, run_file, out, settings, *flags), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def kill_after_checkpoint(version: int, running: list[str], out: Path) -> None:
    """Start the command and end it and all its workers as a power cut would, once that checkpoint is there."""
    with (out.parent / "killed.log").open("w") as log:
        process = subprocess.Popen(running, stdout=log, stderr=log, start_new_session=True)
    while not (out / "checkpoints" / f"step-{version:06d}").exists():
        assert process.poll() is None, (out.parent / "killed.log").read_text()
        time.sleep(0.05)  # another process, which no event of ours can announce
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for member in family:  # Ray's processes have groups of their own
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=30)


def rows(out: Path) -> list[dict[str, float]]:
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps(out: Path) -> list[float]:
    return [row["step"] for row in rows(out)]


def numbers(out: Path) -> list[dict[str, float]]:
    """All of the rows that does not depend on the clock."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows(out)]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(out / "model" / "model.safetensors")


def evaluations(out: Path) -> dict[str, Any]:
    return json.loads((out / "evaluation.json").read_text())


def sampled(out: Path) -> list[dict[str, Any]]:
    """What is kept of the samples."""
    columns = ["step", "ticket", "sample", "token_ids", "versions", "logprobs", "learner_logprobs", "reward", "reply"]
    return read_traces(out, columns).to_pylist()


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 7 steps that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run("train", TINY, out, [*SYNCHRONOUS, f"data.path={data}", "loop.steps=7"])
    return out


def test_a_killed_run_goes_on_from_its_newest_whole_checkpoint_as_if_nothing_had_been(
    whole: Path, data: Path, tmp_path: Path
):
    out = tmp_path / "run"
    settings = [*SYNCHRONOUS, f"data.path={data}", "loop.steps=7"]
    kill_after_checkpoint(4, command("train", TINY, out, settings), out)
    assert 3 <= len(steps(out)) < 7
    assert not (out / "model").exists()
    before = evaluations(out)["before"]
    (out / "evaluation.json").write_text(json.dumps({"before": before, "after": before | {"num_samples": 99}}))
    (out / "checkpoints" / "step-000099.part").mkdir()
    newest = out / "checkpoints" / "step-000004" / "rank-0.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)

    said = run("train", TINY, out, settings, "--resume")
    assert "passed over a checkpoint: step-000099.part: was not finished" in said
    assert "passed over a checkpoint: step-000004/rank-0.safetensors: its checksum is " in said
    assert f"going on from {out}/checkpoints/step-000002" in said
    assert "a checkpoint is 0.02 GB, at most 3 at a time" in said  # 1.5 M weights
    assert steps(out) == [1, 2, 3, 4, 5, 6, 7]
    assert evaluations(out)["before"] == before
    assert evaluations(out)["after"]["num_samples"] == 6  # asked again
    assert sorted(os.listdir(out / "checkpoints")) == ["step-000006", "step-000007"]

    # Without staleness nothing depends on timing: not a bit differs from the run that nothing stopped.
    assert numbers(out) == numbers(whole)
    assert sampled(out) == sampled(whole)
    assert len(sampled(out)) == 7 * 4 * 8
    assert all(torch.equal(part, weights(whole)[name]) for name, part in weights(out).items())


@pytest.mark.parametrize(("kind", "signum"), [("train", signal.SIGINT), ("sft", signal.SIGTERM)])
def test_a_run_that_is_asked_to_stop_keeps_its_steps_and_says_how_to_go_on(
    whole: Path, data: Path, tmp_path: Path, kind: str, signum: signal.Signals
):
    out, run_file = tmp_path / "run", {"train": TINY, "sft": SFT}[kind]
    settings = [*SYNCHRONOUS, f"data.path={data}", "checkpoint.every_steps=100"]
    running = command(kind, run_file, out, [*settings, "loop.steps=400"])
    process = subprocess.Popen(
        running, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=take_interrupts
    )
    while len(steps(out)) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)  # another process, which no event of ours can announce
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signum)
    said, error = process.communicate(timeout=60)
    made = steps(out)[-1]
    assert process.returncode == 128 + signum
    assert f"stopping after step {made}: writing a checkpoint" in said
    assert error.splitlines()[-1] == (
        f"star-r1: {kind} was stopped; to go on, give the same command with --out {out} --resume"
    )
    assert "Traceback" not in error
    assert os.listdir(out / "checkpoints") == [f"step-{made:06.0f}"]
    assert not psutil.wait_procs(family, timeout=30)[1]  # those that live on

    run(kind, run_file, out, [*settings, f"loop.steps={made + 1:.0f}"], "--resume")
    assert steps(out) == list(range(1, int(made) + 2))
    if kind == "train":
        common = min(len(steps(out)), len(steps(whole)))
        assert numbers(out)[:common] == numbers(whole)[:common]


def take_interrupts() -> None:
    """Where the tests run in a shell's background, they and their processes ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_supervised_run_leaves_what_a_run_leaves(data: Path, tmp_path: Path):
    out = tmp_path / "run"
    evaluation = ["evaluation.max_samples=6", "evaluation.every_steps=2"]
    said = run("sft", SFT, out, [f"data.path={data}", "loop.steps=3", *evaluation])
    assert "step   3/3  version   3  loss +" in said
    assert "evaluation of version 2: TAcc " in said
    assert "Basic/ObjAcc" in said
    assert "\nLoss\n" in said
    assert "Held-out prompts, before and after" in said
    assert steps(out) == [1, 2, 3]
    assert {tuple(row) for row in rows(out)} == {tuple(rows(out)[0])}  # the same keys every step
    assert all(np.isfinite(list(row.values())).all() for row in rows(out))
    not_in_steps = rows(out)[-1]["elapsed_s"] - sum(row["step_s"] for row in rows(out))
    assert not_in_steps > 0.01  # the evaluation beside: a step's speed is that of learning
    assert {name: (report["num_samples"], report["versions"]) for name, report in evaluations(out).items()} == {
        "before": (6, [0, 0]),
        "version 2": (6, [2, 2]),
        "after": (6, [3, 3]),
    }
    held_out = [prompt.id for prompt in load(data, "test")]
    for name in ("before", "version-2", "after"):
        lines = (out / "replies" / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line)["id"] for line in lines] == held_out
    before = AutoModelForImageTextToText.from_pretrained("deploy/models/tiny", dtype=torch.float32)
    after = AutoModelForImageTextToText.from_pretrained(out / "model", dtype=torch.float32)
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)
    assert os.listdir(out / "checkpoints") == ["step-000003"]  # one every 20 steps, and at the end
