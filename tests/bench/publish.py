"""What it costs to publish a version through the object store, at 2 M and at 100 M parameters. One JSON line last.

    python -m tests.bench.publish [--policies tiny 100M] [--trained all adapters] [--publishes 7]
                                                                   (tiny: two minutes; 100M: about 20 minutes)

Each policy is trained whole and, after that, with adapters of rank 16, whose layers alone are published. One rollout
worker and one learner rank as in deploy/runs/tiny_cpu.toml, float32, with policies that are freshly
initialised. A step is what stands in that file: 16 prompts, 8 samples of at most 64 tokens, sampled and then learned
from, once, without overlap, for *step_s* (the longer of the two, which is a step's length when they overlap). Then
versions are published while the worker samples, medians:

- pause_s: nothing is sampled; pause_share: of step_s.
- export_s: until the learner can go on; served_s: from the end of a step until the version is served.
- moved_mb: bytes of what is published, each written once and read in place.
"""

import argparse
import asyncio
import json
import tempfile
import time
from itertools import product
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

from orchestrator.cluster.learner import RayLearner
from orchestrator.cluster.publish import StorePublisher
from orchestrator.cluster.rollouts import RayRollouts
from orchestrator.cluster.start import connected, start_roles
from orchestrator.config import RunConfig, load_run_config
from records.samples import PolicyVersion, Prompt
from tasks.tvr.data.dataset import load
from tasks.tvr.data.rendered import ensure
from tests.bench.policies import SIZES, make_policy

TRAINED = {"all": [], "adapters": ["learner.lora_rank=16"]}
"""The settings of a run by what it trains."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", nargs="+", choices=SIZES, default=["tiny", "100M"])
    parser.add_argument("--trained", nargs="+", choices=TRAINED, default=list(TRAINED))
    parser.add_argument("--publishes", type=int, default=7)
    options = parser.parse_args()
    found = {}
    for policy, trained in product(options.policies, options.trained):
        with tempfile.TemporaryDirectory() as folder:
            parameters = make_policy(policy, Path(folder) / "model")
            settings = [f"model={folder}/model", *TRAINED[trained]]
            config = load_run_config(Path("deploy/runs/tiny_cpu.toml"), settings)
            ensure(config.data)
            with connected(config):
                figures = asyncio.run(measure(config, Path(folder), options.publishes))
        name = policy if trained == "all" else f"{policy}_{trained}"
        found[name] = figures | {"parameters": parameters}
        print(f"{name}: {found[name]}", flush=True)
    print(json.dumps({f"{key}_{name}": value for name, figures in found.items() for key, value in figures.items()}))


async def measure(config: RunConfig, folder: Path, publishes: int) -> dict[str, Any]:
    rollouts, _, learner = await start_roles(config, folder)
    prompts = load(config.data.path, "train")
    step_s = await time_a_step(config, rollouts, learner, prompts)
    publisher = StorePublisher(learner, rollouts)
    sampling = asyncio.create_task(keep_sampling(rollouts, prompts))
    pauses, exports, served = [], [], []
    for number in range(publishes):
        began = time.monotonic()
        takeover = await publisher.send(PolicyVersion(2 + number))
        exports.append(time.monotonic() - began)
        pauses.append(await takeover)
        served.append(time.monotonic() - began)
        await asyncio.sleep(0.2)  # so that the worker samples in between
    sampling.cancel()
    await asyncio.gather(sampling, return_exceptions=True)
    manifest = (await learner.call("manifest", "manifest", PolicyVersion(0)))[0]
    moved = sum(4 * prod(info.shape) for info in manifest.tensors)
    await rollouts.stop()
    return {
        "pause_share": round(median(pauses) / step_s, 4),
        "pause_s": round(median(pauses), 4),
        "export_s": round(median(exports), 4),
        "served_s": round(median(served), 4),
        "step_s": round(step_s, 2),
        "moved_mb": round(moved / 1e6, 1),
    }


async def time_a_step(config: RunConfig, rollouts: RayRollouts, learner: RayLearner, prompts: list[Prompt]) -> float:
    """The longer of sampling and learning, the second time."""
    size = config.loop.groups_per_step
    for number in range(2):
        began = time.monotonic()
        chosen = prompts[number * size : (number + 1) * size]
        groups = await asyncio.gather(*(rollouts.sample(prompt, seed=number) for prompt in chosen))
        sampled = time.monotonic()
        await learner.step(tuple(groups))
    return max(sampled - began, time.monotonic() - sampled)


async def keep_sampling(rollouts: RayRollouts, prompts: list[Prompt]) -> None:
    while True:
        await asyncio.gather(*(rollouts.sample(prompt, seed=7) for prompt in prompts[:4]))


if __name__ == "__main__":
    main()
