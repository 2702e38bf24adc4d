"""What it brings to sample ahead: the same run with `max_staleness` 0 and 1. One JSON line last.

    python -m tests.bench.overlap [--steps 40] [--set SECTION.KEY=VALUE]      (about 5 minutes)

The policy, data and batch of deploy/runs/tiny_cpu.toml, one rollout worker and one learner rank, which share two cores.
Each run starts anew, from the same weights and prompts. Its first steps do not count: the window fills, caches warm up.

- speedup: median time of a step with 0 over that with 1; with two stages it cannot exceed 2.
- idle_share: the share of the time in which a stage had nothing to do, by run.
- step_over_longest_stage: with 1, the median step over the longer of the median busy times of sampling and of learning.
- reward: the mean reward over all samples of the last half of the steps, by run.
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

from orchestrator.cluster import connected, start_roles
from orchestrator.config import RunConfig, load_run_config
from orchestrator.loop import Run, StepTimes, train
from orchestrator.ray_roles import RayRollouts, RayScorer
from orchestrator.window import Window
from tvr.dataset import PromptOrder, load
from tvr.records import PolicyVersion, SampleGroup, ScoredGroup, StepReport
from tvr.rendered import ensure

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
        "step_s": {str(staleness): run["step_s"] for staleness, run in found.items()},
    }
    print(json.dumps(result))


class Busy:
    """Seconds in which at least one call was under way."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._calls = 0
        self._since = 0.0

    def __enter__(self) -> None:
        if not self._calls:
            self._since = time.monotonic()
        self._calls += 1

    def __exit__(self, *error: object) -> None:
        self._calls -= 1
        if not self._calls:
            self.seconds += time.monotonic() - self._since

    def until_now(self) -> float:
        return self.seconds + (time.monotonic() - self._since if self._calls else 0.0)


class Timed:
    """A stage, with the time in which it had work."""

    def __init__(self, stage: Any) -> None:
        self._stage = stage
        self.busy = Busy()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)


class TimedRollouts(Timed):
    async def sample(self, *args: Any, **settings: Any) -> SampleGroup:
        with self.busy:
            return await self._stage.sample(*args, **settings)


class TimedScorer(Timed):
    async def score(self, group: SampleGroup) -> ScoredGroup:
        with self.busy:
            return await self._stage.score(group)


async def measure(config: RunConfig, out: Path) -> dict[str, Any]:
    data = ensure(config.data)
    roles: tuple[RayRollouts, RayScorer, Any] = await start_roles(config, out)
    rollouts, scorer, learner = TimedRollouts(roles[0]), TimedScorer(roles[1]), roles[2]
    rows: list[dict[str, float]] = []
    last = [time.monotonic(), 0.0, 0.0]

    def after_step(report: StepReport, groups: tuple[ScoredGroup, ...], times: StepTimes) -> None:
        now = [time.monotonic(), rollouts.busy.until_now(), scorer.busy.until_now()]
        step_s, sampling_s, scoring_s = (new - old for new, old in zip(now, last, strict=True))
        last[:] = now
        rewards = [score.total for group in groups for score in group.scores]
        row = {"step_s": step_s, "sampling_s": sampling_s, "scoring_s": scoring_s, "learning_s": times.learn_s}
        rows.append(row | {"publish_s": times.publish_s, "reward": mean(rewards)})

    size = config.loop.groups_per_step
    run = Run(
        rollouts=rollouts,
        scorer=scorer,
        learner=learner,
        prompts=PromptOrder(load(data, "train"), config.seed),
        window=Window(
            groups_per_step=size, max_staleness=config.loop.max_staleness, total_groups=config.loop.steps * size
        ),
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
    await rollouts.stop()
    counted = rows[UNCOUNTED:-1]  # in the last step there is nothing left to sample
    total = sum(row["step_s"] for row in counted)
    stages = ("sampling_s", "scoring_s", "learning_s")
    idle = {stage.removesuffix("_s"): round(1 - sum(row[stage] for row in counted) / total, 3) for stage in stages}
    medians = {key: round(median(row[key] for row in counted), 3) for key in counted[0] if key != "reward"}
    return medians | {"idle_share": idle, "reward": round(mean(row["reward"] for row in rows[len(rows) // 2 :]), 3)}


async def no_evaluation(version: PolicyVersion) -> None:
    raise AssertionError(f"version {version} was to be evaluated")


if __name__ == "__main__":
    main()
