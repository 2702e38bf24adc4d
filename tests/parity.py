"""How far the learner's log-probs are from the engine's for the same tokens at the same version."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from orchestrator.cluster.learner import RayLearner
from orchestrator.cluster.publish import make_publisher
from orchestrator.cluster.rollouts import RayRollouts
from orchestrator.cluster.start import start_roles, stop_watching
from orchestrator.config import RunConfig
from records.samples import Prompt


async def gaps_around_a_publish(
    config: RunConfig, prompts: Sequence[Prompt], out: Path, add_worker: bool = False
) -> list[float]:
    """Largest absolute difference (nats) at version 0 and, after one learner step and its publish, at version 1; with
    *add_worker* also of a worker that was added only then.

    *out* is for the learner. Call it inside `orchestrator.cluster.start.connected`.
    """
    rollouts, scorer, learner = await start_roles(config, out)
    publisher = make_publisher(learner, rollouts, config.rollout)
    gaps = [await gap(rollouts, learner, prompts, version=0)]
    scored = await asyncio.gather(*(rollouts.sample(prompt, seed=0) for prompt in prompts))
    report = await learner.step(tuple(scored))
    assert report.version == 1
    assert report.grad_norm > 0
    await (await publisher.send(report.version))
    gaps.append(await gap(rollouts, learner, prompts, version=1))
    if add_worker:
        (first,) = rollouts.supervisor.hands
        rollouts.supervisor.resize(2)
        await rollouts.supervisor.until(lambda: len(rollouts.supervisor.hands) == 2)
        rollouts.supervisor.lost(first, "the other is looked at alone")
        gaps.append(await gap(rollouts, learner, prompts, version=1))
    await stop_watching(rollouts, scorer, learner)
    await rollouts.stop()
    return gaps


async def gap(rollouts: RayRollouts, learner: RayLearner, prompts: Sequence[Prompt], version: int) -> float:
    groups = [scored.group for scored in await asyncio.gather(*(rollouts.sample(prompt, seed=1) for prompt in prompts))]
    assert {group.oldest_version for group in groups} == {version}
    learned = (await learner.logprobs(tuple(groups)))[0]
    return max(
        float(np.abs(ours - sample.trace.logprobs).max())
        for group, rows in zip(groups, learned, strict=True)
        for sample, ours in zip(group.samples, rows, strict=True)
    )
