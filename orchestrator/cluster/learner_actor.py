"""A learner's rank as it is when Ray runs it: the pictures of each group or prompt come beside them, in order."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray

from learner.actor import LearnerRank
from learner.config import LearnerConfig, LearnerJob
from orchestrator.cluster.machine import check_folder, check_gpus
from orchestrator.cluster.on_node import OnNode
from orchestrator.cluster.pictures import Pictures, attached
from records.samples import Prompt, SampleGroup, ScoredGroup, StepReport

WATCH = "watch"
"""The calls to a learner's rank that are answered while others go on."""
LEARNER_SHARE = 0.8
"""Of its GPU's memory, which a learner rank takes without being told how much."""


class LearnerActor(OnNode, LearnerRank):
    """The pictures of each group or prompt come beside them, in the same order."""

    def __init__(self, config: LearnerConfig, job: LearnerJob, rank: int, world_size: int) -> None:
        super().__init__(config, job, rank, world_size)
        self._device, self._model, self._folder = job.device, job.model, job.folder
        self._place = f"rank {rank} of {world_size}"

    def job(self) -> str:
        return f"{self._place}, {Path(self._model).name}"

    def check_machine(self, workers_here: int) -> None:
        """Whether this node is fit for it. Raises UnfitMachine."""
        check_folder(Path(self._model), "the model")
        check_folder(Path(self._folder), "the run directory")
        if self._device == "gpu":
            check_gpus(LEARNER_SHARE, "a learner rank")

    @ray.method(concurrency_group=WATCH)
    def completed_so_far(self) -> int:
        """What it has done since it started, in parts of a step; answered in the middle of one."""
        return self.completed

    def step_stored(self, groups: Sequence[ScoredGroup], *pictures: Pictures) -> StepReport:
        whole = zip(groups, pictures, strict=True)
        return self.step(tuple(replace(scored, group=_with(scored.group, own)) for scored, own in whole))

    def imitate_stored(self, examples: Sequence[tuple[Prompt, str]], *pictures: Pictures) -> StepReport:
        prompts, answers = zip(*examples, strict=True)
        return self.imitate(
            tuple(attached(prompt, own) for prompt, own in zip(prompts, pictures, strict=True)), answers
        )

    def logprobs_stored(self, groups: Sequence[SampleGroup], *pictures: Pictures) -> list[list[np.ndarray]]:
        return self.logprobs(tuple(_with(group, own) for group, own in zip(groups, pictures, strict=True)))


def _with(group: SampleGroup, pictures: Pictures) -> SampleGroup:
    return replace(group, prompt=attached(group.prompt, pictures))
