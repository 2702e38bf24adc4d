"""Learner/engine parity of a run file's policy: one JSON line last.

python -m tests.bench.parity deploy/runs/tiny_cpu.toml
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

from orchestrator.cluster.start import connected
from orchestrator.config import load_run_config
from tasks.tvr.data.dataset import load
from tasks.tvr.data.rendered import ensure
from tests.parity import gaps_around_a_publish


def main() -> None:
    config = load_run_config(Path(sys.argv[1]), sys.argv[2:])
    prompts = load(ensure(config.data), "train")[: config.loop.groups_per_step]
    with connected(config), tempfile.TemporaryDirectory() as out:
        before, after = asyncio.run(gaps_around_a_publish(config, prompts, Path(out)))
    samples = len(prompts) * config.rollout.samples_per_prompt
    print(json.dumps({"max_gap_before_update": before, "max_gap_after_publish": after, "samples": samples}))


if __name__ == "__main__":
    main()
