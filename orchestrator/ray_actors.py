"""Workers as they are when Ray runs them: pictures and weights come beside what they belong to (`ray_pictures.py`)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from learner.actor import LearnerRank
from orchestrator.ray_pictures import attached
from rollout.actor import RolloutWorker
from tvr.records import ImagePair, Prompt, Sample, SampleGroup, Score, ScoredGroup, StepReport


class RolloutActor(RolloutWorker):
    """Its samples go back without their prompt, which the caller has."""

    async def answer_stored(self, prompt: Prompt, pair: ImagePair) -> Sample:
        return await self.answer(attached(prompt, pair))

    async def sample_stored(
        self, prompt: Prompt, pair: ImagePair, seed: int
    ) -> tuple[tuple[Sample, ...], tuple[Score, ...]]:
        scored = await self.sample(attached(prompt, pair), seed)
        return scored.group.samples, scored.scores


class LearnerActor(LearnerRank):
    """One pair comes for each group or prompt, in the same order."""

    def step_stored(self, groups: Sequence[ScoredGroup], *pairs: ImagePair) -> StepReport:
        whole = zip(groups, pairs, strict=True)
        return self.step(tuple(replace(scored, group=_with(scored.group, pair)) for scored, pair in whole))

    def imitate_stored(self, prompts: Sequence[Prompt], *pairs: ImagePair) -> StepReport:
        return self.imitate(tuple(attached(prompt, pair) for prompt, pair in zip(prompts, pairs, strict=True)))

    def logprobs_stored(self, groups: Sequence[SampleGroup], *pairs: ImagePair) -> list[list[np.ndarray]]:
        return self.logprobs(tuple(_with(group, pair) for group, pair in zip(groups, pairs, strict=True)))


def _with(group: SampleGroup, pair: ImagePair) -> SampleGroup:
    return replace(group, prompt=attached(group.prompt, pair))
