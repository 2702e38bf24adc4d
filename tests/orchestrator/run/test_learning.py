"""The one test that says that everything together learns: a run as `make train` makes it, cut short.

The mean reward rose by 6.7 when this was written. With the advantages' sign turned it fell by 4.0. With each prompt
asked with another's pictures it rose by 0.8, for even who cannot see learns to say less. Weights that are not served,
or only said to be, end the run.
"""

import subprocess
import sys

import pytest

from orchestrator.run.metrics import read_rows
from tests.orchestrator.small_runs import TINY

STEPS = 25
WINDOW = 5
PAIRS = 48
RISE = 3.0

pytestmark = pytest.mark.slow


def test_25_steps_raise_the_mean_reward_by_3(tmp_path):
    settings = [f"loop.steps={STEPS}", f"data.path={tmp_path}/data", f"data.train={PAIRS}", "data.test=3"]
    settings += ["evaluation.max_samples=0", "evaluation.every_steps=0", "checkpoint.every_steps=0"]
    command = [sys.executable, "-m", "orchestrator.commands.cli", "train", str(TINY), "--out", str(tmp_path / "run")]
    for setting in settings:
        command += ["--set", setting]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rewards = [row["reward"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")]
    assert len(rewards) == STEPS
    first, last = sum(rewards[:WINDOW]) / WINDOW, sum(rewards[-WINDOW:]) / WINDOW
    assert last - first >= RISE, rewards
