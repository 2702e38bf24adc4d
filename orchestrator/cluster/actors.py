"""Workers as they are when Ray runs them: pictures and weights come beside what they belong to (`pictures.py`)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from learner.actor import LearnerRank
from learner.config import LearnerConfig, LearnerJob
from orchestrator.cluster.machine import check_folder, check_gpus, check_shared_memory
from orchestrator.cluster.on_node import OnNode
from orchestrator.cluster.pictures import Pictures, attached
from orchestrator.config import Device
from records.samples import Prompt, Sample, SampleGroup, Score, ScoredGroup, StepReport
from rollout.actor import RolloutWorker
from rollout.config import OBJECT_STORE, RolloutConfig
from rollout.engine import picture_cache_bytes
from rollout.shm import shm_folder

LEARNER_SHARE = 0.8
"""Of its GPU's memory, which a learner rank takes without being told how much."""


class RolloutActor(OnNode, RolloutWorker):
    """Its samples go back without their prompt, which the caller has."""

    def __init__(self, config: RolloutConfig, model: str, worker_id: str, scorer: Any, device: Device) -> None:
        super().__init__(config, model, worker_id, scorer)
        self._device = device

    def check_machine(self, workers_here: int) -> None:
        """Whether this node is fit for *workers_here* of them. Raises UnfitMachine."""
        check_folder(Path(self.model), "the model")
        if self._device == "gpu":
            check_gpus(self.config.gpu_memory_utilization, "rollout.gpu_memory_utilization")
        wanted = workers_here * picture_cache_bytes(self.config, self.model)
        what = f"the pictures of {workers_here} rollout workers"
        if self._device == "gpu" and self.config.weight_transport == OBJECT_STORE:
            wanted += sum(file.stat().st_size for file in Path(self.model).glob("*.safetensors"))
            what += " and a version of the weights"
        check_shared_memory(shm_folder(), wanted, what)

    async def answer_stored(self, prompt: Prompt, pictures: Pictures) -> Sample:
        return await self.answer(attached(prompt, pictures))

    async def sample_stored(
        self, prompt: Prompt, pictures: Pictures, seed: int
    ) -> tuple[tuple[Sample, ...], tuple[Score, ...]]:
        scored = await self.sample(attached(prompt, pictures), seed)
        return scored.group.samples, scored.scores


class LearnerActor(OnNode, LearnerRank):
    """The pictures of each group or prompt come beside them, in the same order."""

    def __init__(self, config: LearnerConfig, job: LearnerJob, rank: int, world_size: int) -> None:
        super().__init__(config, job, rank, world_size)
        self._device, self._model, self._folder = job.device, job.model, job.folder

    def check_machine(self, workers_here: int) -> None:
        """Whether this node is fit for it. Raises UnfitMachine."""
        check_folder(Path(self._model), "the model")
        check_folder(Path(self._folder), "the run directory")
        if self._device == "gpu":
            check_gpus(LEARNER_SHARE, "a learner rank")

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
