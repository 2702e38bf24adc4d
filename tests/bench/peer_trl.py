"""Samples a second beside TRL's GRPOTrainer, and seconds to the same reward. One JSON line last.

    python -m tests.bench.peer_trl [--rounds 5] [--reward-steps 140]      (10 minutes; with reward steps 15 more)

The policy and settings of deploy/runs/tiny_cpu.toml on both sides: 16 prompts of two pictures, 8 samples each of at
most 64 tokens, the same prompts in every step, reward STAR-R1's. In turn, each time in a new process with both cores to
itself. Evaluation and checkpoints are off. TRL 1.16 has a virtual environment of its own, which the first call makes,
and samples with transformers: vLLM inside its trainer fails on a CPU. It also fails on prompts of unequal length, so
all scenes have two objects. There are 160 prompts, which 10 steps go through once.

TRL learns a batch in 4 passes of 32 samples: with 1, 2, 4, 8 and 16 passes it made 29, 32, 33, 29 and 24 samples/s.

- ours_samples_per_s, trl_samples_per_s: of a round, the median over its steps but the first 5; median over rounds.
- ratio: of the two, round by round; median over rounds.
- answer_length: mean tokens of an answer in the counted steps, last round.
- seconds_to_reward: training time, start-up excluded, until the mean reward of 10 steps first reached `reward`; null
  where it did not. Without --reward it is the lower of the two runs' best, so that both reach it.
- best_reward: the highest mean of 10 steps; first_reward: that of the first 10. Single prompts differ much: to compare
  with another run of this bench, give --reward.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

from orchestrator.config import load_run_config
from orchestrator.run.metrics import read_rows
from tasks.tvr.data.rendered import ensure

RUN_FILE = "deploy/runs/tiny_cpu.toml"
SETTINGS = (
    "data.path=data/peer_two_objects",
    "data.objects=[2, 2]",
    "data.train=160",
    "data.test=16",
    "evaluation.max_samples=0",
    "checkpoint.every_steps=0",
)
UNCOUNTED = 5
WINDOW = 10

CONSTRAINTS = "deploy/constraints/cpu.txt"
TORCH = "torch==2.13.0+cpu"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
# The pins of what we use ourselves are our own.
PACKAGES = (
    "trl==1.16.0",
    "accelerate==1.15.0",
    "transformers",
    "datasets",
    "torchvision",
    "pillow",
    "pydantic",
    "numpy",
)

Rows = list[dict[str, float]]
Side = Callable[[int], Rows]
"""Trains for so many steps; returns a row a step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="counted steps of a round (%(default)s)")
    parser.add_argument("--reward-steps", type=int, default=0, help="steps of the longer runs; 0 leaves them out")
    parser.add_argument("--reward", type=float, help="mean reward to reach (default: what both reach)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for both sides")
    parser.add_argument("--venv", type=Path, default=Path("output/peer-trl"), help="TRL's (%(default)s)")
    options = parser.parse_args()
    if 0 < options.reward_steps < WINDOW:
        parser.error(f"--reward-steps is {options.reward_steps}; a mean reward takes {WINDOW} steps")
    settings = [*SETTINGS, *options.set]
    python = make_environment(options.venv)
    ensure(load_run_config(Path(RUN_FILE), settings).data)

    def ours(steps: int) -> Rows:
        return train_ours(steps, settings)

    def trl(steps: int) -> Rows:
        return train_trl(steps, settings, python)

    result = compare_speed(ours, trl, options.rounds, options.steps)
    if options.reward_steps:
        result |= compare_reward(ours, trl, options.reward_steps, options.reward)
    print(json.dumps(result))


def compare_speed(ours: Side, trl: Side, rounds: int, steps: int) -> dict[str, object]:
    speeds: dict[str, list[float]] = {"ours": [], "trl": []}
    lengths = {}
    for number in range(1, rounds + 1):
        # In our last step there is nothing left to sample.
        counted = {"ours": ours(UNCOUNTED + steps + 1)[UNCOUNTED:-1], "trl": trl(UNCOUNTED + steps)[UNCOUNTED:]}
        for side, rows in counted.items():
            speeds[side].append(median(row["samples_per_s"] for row in rows))
            lengths[side] = round(mean(row["answer_length"] for row in rows), 1)
        one, other = speeds["ours"][-1], speeds["trl"][-1]
        print(
            f"round {number} of {rounds}: ours {one:.1f}, TRL {other:.1f} samples/s, ratio {one / other:.2f}",
            flush=True,
        )
    return {
        "ours_samples_per_s": round(median(speeds["ours"]), 1),
        "trl_samples_per_s": round(median(speeds["trl"]), 1),
        "ratio": round(median(one / other for one, other in zip(speeds["ours"], speeds["trl"], strict=True)), 2),
        "rounds": rounds,
        "answer_length": lengths,
    }


def compare_reward(ours: Side, trl: Side, steps: int, target: float | None) -> dict[str, object]:
    means, seconds = {}, {}
    for side, train in (("ours", ours), ("trl", trl)):
        rows = train(steps)
        means[side] = [mean(row["reward"] for row in rows[at : at + WINDOW]) for at in range(steps - WINDOW + 1)]
        seconds[side] = [row["elapsed_s"] for row in rows[WINDOW - 1 :]]
        found = means[side]
        print(
            f"{side}: {steps} steps in {seconds[side][-1]:.0f} s, reward {found[0]:+.3f}, best {max(found):+.3f}",
            flush=True,
        )
    if target is None:
        target = min(map(max, means.values()))
    reached = {
        side: next(
            (round(when, 1) for when, reward in zip(seconds[side], means[side], strict=True) if reward >= target), None
        )
        for side in means
    }
    return {
        "reward": round(target, 3),
        "seconds_to_reward": reached,
        "best_reward": {side: round(max(found), 3) for side, found in means.items()},
        "first_reward": {side: round(found[0], 3) for side, found in means.items()},
    }


def train_ours(steps: int, settings: list[str]) -> Rows:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "orchestrator.commands.cli", "train", RUN_FILE, "--out", str(out)]
        run([*command, *set_arguments(steps, settings)], {**os.environ, "OMP_NUM_THREADS": "1"})
        return read_rows(out / "metrics.jsonl")


def train_trl(steps: int, settings: list[str], python: Path) -> Rows:
    """With as many threads as torch chooses: one a core."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "steps.jsonl"
        command = [str(python), "-m", "tests.bench.peer_trl_run", RUN_FILE, "--out", str(out)]
        run([*command, *set_arguments(steps, settings)], environment)
        return read_rows(out)


def set_arguments(steps: int, settings: list[str]) -> list[str]:
    return [part for setting in [*settings, f"loop.steps={steps}"] for part in ("--set", setting)]


def run(command: list[str], environment: dict[str, str]) -> None:
    """Quietly; what it printed is shown when it fails."""
    result = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if result.returncode:
        sys.exit(f"{result.stdout[-5000:]}\nexit status {result.returncode} of {' '.join(command)}")


def make_environment(folder: Path) -> Path:
    """TRL's python; installed first where it is missing, torch's CPU build as the Makefile does it."""
    python, done = folder / "bin" / "python", folder / ".set-up"
    if not done.exists():
        print(f"installing {PACKAGES[0]} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "-c", CONSTRAINTS]
        if subprocess.run([*install, TORCH]).returncode:
            subprocess.run([*install, "--extra-index-url", TORCH_INDEX, TORCH], check=True)
        subprocess.run([*install, *PACKAGES], check=True)
        subprocess.run([str(python), "deploy/torchvision_cpu.py"], check=True)
        done.touch()
    return python


if __name__ == "__main__":
    main()
