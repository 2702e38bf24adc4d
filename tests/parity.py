"""How far the learner's log-probs are from the engine's for the same tokens at the same version."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from orchestrator.cluster import start_roles
from orchestrator.config import RunConfig
from orchestrator.publish import publish
from tvr.records import Prompt


async def gaps_around_a_publish(config: RunConfig, prompts: Sequence[Prompt], out: Path) -> list[float]:
    """Largest absolute difference (nats) at version 0 and, after one learner step and its publish, at version 1.

    *out* is for the learner. Call it inside `orchestrator.cluster.connected`.
    """
    rollouts, scorer, learner = await start_roles(config, out)
    gaps = []
    for version in (0, 1):
        groups = await asyncio.gather(*(rollouts.sample(prompt, seed=version) for prompt in prompts))
        assert {group.oldest_version for group in groups} == {version}
        learned = (await learner.logprobs(tuple(groups)))[0]
        gaps.append(
            max(
                float(np.abs(ours - sample.trace.logprobs).max())
                for group, rows in zip(groups, learned, strict=True)
                for sample, ours in zip(group.samples, rows, strict=True)
            )
        )
        if version == 0:
            report = await learner.step(tuple([await scorer.score(group) for group in groups]))
            assert report.version == 1
            assert report.grad_norm > 0
            await publish(report.version, learner, rollouts)
    await rollouts.stop()
    return gaps
