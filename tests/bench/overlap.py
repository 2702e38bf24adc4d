"""What it brings to sample ahead: the same run with `max_staleness` 0 and 1. One JSON line last.

    python -m tests.bench.overlap [--steps 40] [--set SECTION.KEY=VALUE]      (about 5 minutes)

The policy, data and batch of deploy/runs/tiny_cpu.toml, one rollout worker and one learner rank, each on a core of its
own; the driver, Ray and the reward worker run on either. Each run starts anew, from the same weights and prompts. Its
first steps do not count: the window fills, caches warm up.

- speedup: median time of a step with 0 over that with 1; with two stages it cannot exceed 2.
- idle_share: the share of the time in which a stage had nothing to do, by run.
- step_over_longest_stage: with 1, the median step over the longer of the median busy times of sampling and of learning.
- straggler_share: the share of the time in which the learner waited although enough groups were ready, because a group
  stood before them that was not: what strict order costs.
- reward: the mean reward over all samples of the last half of the steps, by run.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import psutil

from orchestrator.cluster.learner import RayLearner
from orchestrator.cluster.publish import make_publisher
from orchestrator.cluster.rollouts import RayRollouts
from orchestrator.cluster.start import connected, start_roles
from orchestrator.config import RunConfig, load_run_config
from orchestrator.loop.loop import Run, StepTimes, train
from orchestrator.loop.window import Ticket, Window
from orchestrator.run.journal import Journal
from records.order import PromptOrder
from records.samples import PolicyVersion, Prompt, Sample, ScoredGroup, StepReport
from reward_service.load import Busy
from tasks.tvr.data.dataset import load
from tasks.tvr.data.rendered import ensure

UNCOUNTED = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    options = parser.parse_args()
    found = {}
    for staleness in (0, 1):
        settings = [*options.set, f"loop.steps={options.steps}", f"loop.max_staleness={staleness}"]
        config = load_run_config(Path("deploy/runs/tiny_cpu.toml"), settings)
        with connected(config), tempfile.TemporaryDirectory() as out:
            found[staleness] = asyncio.run(measure(config, Path(out)))
        print(f"max_staleness {staleness}: {found[staleness]}", flush=True)
    longest = max(found[1]["sampling_s"], found[1]["learning_s"])
    result = {
        "speedup": round(found[0]["step_s"] / found[1]["step_s"], 2),
        "idle_share": {str(staleness): run["idle_share"] for staleness, run in found.items()},
        "step_over_longest_stage": round(found[1]["step_s"] / longest, 2),
        "reward": {str(staleness): run["reward"] for staleness, run in found.items()},
        "straggler_share": {str(staleness): run["straggler_share"] for staleness, run in found.items()},
        "step_s": {str(staleness): run["step_s"] for staleness, run in found.items()},
    }
    print(json.dumps(result))


class TimedRollouts:
    """The rollout workers, with the time in which they had groups to sample."""

    def __init__(self, rollouts: RayRollouts) -> None:
        self._rollouts = rollouts
        self.busy = Busy()

    async def sample(self, prompt: Prompt, *, seed: int) -> ScoredGroup:
        with self.busy:
            return await self._rollouts.sample(prompt, seed=seed)

    async def answer(self, prompt: Prompt) -> Sample:
        raise AssertionError(f"{prompt.id} was to be answered")


class TimedWindow(Window):
    """Also the time in which the learner waits although enough groups are ready: for one that stands before them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.straggled_s = 0.0
        self._enough_since: float | None = None
        self._wanted = 0

    async def deliver(self, ticket: Ticket, group: ScoredGroup) -> None:
        await super().deliver(ticket, group)
        if self._wanted and self._enough_since is None and len(self._ready) >= self._wanted:
            self._enough_since = time.monotonic()

    async def take(self, count: int) -> tuple[ScoredGroup, ...]:
        self._wanted = count
        self._enough_since = time.monotonic() if len(self._ready) >= count else None
        groups = await super().take(count)
        if self._enough_since is not None:
            self.straggled_s += time.monotonic() - self._enough_since
        self._wanted = 0
        return groups


async def measure(config: RunConfig, out: Path) -> dict[str, Any]:
    data = ensure(config.data)
    ray_rollouts, scorer, learner = await start_roles(config, out)
    pin(ray_rollouts, learner)
    rollouts = TimedRollouts(ray_rollouts)
    rows: list[dict[str, float]] = []
    began = time.monotonic()
    size = config.loop.groups_per_step
    window = TimedWindow(
        groups_per_step=size, max_staleness=config.loop.max_staleness, total_groups=config.loop.steps * size
    )

    async def after_step(report: StepReport, groups: tuple[ScoredGroup, ...], times: StepTimes) -> None:
        nonlocal began
        now = time.monotonic()
        step_s, began = now - began, now
        scoring_s = max(load.busy_s for load in await scorer.load())
        rewards = [score.total for group in groups for score in group.scores]
        rows.append(
            {
                "step_s": step_s,
                "sampling_s": rollouts.busy.take(),
                "scoring_s": scoring_s,
                "learning_s": times.learn_s,
                "publish_s": times.publish_s,
                "pause_s": times.pause_s,
                "straggled_s": window.straggled_s,
                "reward": mean(rewards),
            }
        )
        window.straggled_s = 0.0

    journal = Journal(out)
    journal.began(PolicyVersion(0))
    run = Run(
        rollouts=rollouts,
        learner=learner,
        publisher=make_publisher(learner, ray_rollouts, config.rollout),
        prompts=PromptOrder(load(data, "train"), config.seed),
        window=window,
        journal=journal,
        steps=config.loop.steps,
        groups_per_step=size,
        max_staleness=config.loop.max_staleness,
        seed=config.seed,
        checkpoint_every=0,
        evaluate_every=0,
        after_step=after_step,
        evaluate=no_evaluation,
    )
    await train(run)
    await ray_rollouts.stop()
    counted = rows[UNCOUNTED:-1]  # in the last step there is nothing left to sample
    total = sum(row["step_s"] for row in counted)
    stages = ("sampling_s", "scoring_s", "learning_s")
    idle = {stage.removesuffix("_s"): round(1 - sum(row[stage] for row in counted) / total, 3) for stage in stages}
    medians = {key: round(median(row[key] for row in counted), 3) for key in counted[0] if key != "reward"}
    straggled = round(sum(row["straggled_s"] for row in counted) / total, 3)
    reward = round(mean(row["reward"] for row in rows[len(rows) // 2 :]), 3)
    return medians | {"idle_share": idle, "straggler_share": straggled, "reward": reward}


def pin(rollouts: RayRollouts, learner: RayLearner) -> None:
    """The rollout workers' processes to core 0, the learner's to core 1, with all their threads."""
    cores = {hand.where.pid: 0 for hand in rollouts.supervisor.hands.values() if hand.where is not None}
    ranks = [hand.ranks for hand in learner.supervisor.hands.values() if hand.ranks is not None]
    cores |= {place.pid: 1 for each in ranks for place in each.places}
    for pid, core in cores.items():
        for thread in psutil.Process(pid).threads():
            os.sched_setaffinity(thread.id, {core})


async def no_evaluation() -> None:
    raise AssertionError("nothing was to be evaluated")


if __name__ == "__main__":
    main()
