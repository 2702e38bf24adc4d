"""A rollout worker as it is when Ray runs it: pictures and weights come beside what they belong to (`pictures.py`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.cluster.machine import check_folder, check_gpus, check_shared_memory
from orchestrator.cluster.on_node import OnNode
from orchestrator.cluster.pictures import Pictures, attached
from orchestrator.cluster.scorer import RayScorer
from orchestrator.config import Device
from records.samples import Prompt, Sample, Score
from rollout.actor import RolloutWorker
from rollout.config import OBJECT_STORE, RolloutConfig
from rollout.engine import picture_cache_bytes
from rollout.shm import shm_folder


class RolloutActor(OnNode, RolloutWorker):
    """Its samples go back without their prompt, which the caller has."""

    def __init__(self, config: RolloutConfig, model: str, worker_id: str, scorer: RayScorer, device: Device) -> None:
        super().__init__(config, model, worker_id, scorer)
        self._asked = scorer
        self._device = device

    def job(self) -> str:
        return f"{Path(self.model).name}, up to {self.config.concurrent_prompts} prompts"

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

    def use_scorers(self, actors: Mapping[str, Any]) -> None:
        """From now on these reward workers, by name, score."""
        self._asked.use(actors)

    async def pulse(self) -> tuple[int, bool, bool]:
        """How much its engine has done since it started, whether it has work, and whether more waits."""
        return self.completed, self.has_work, self.is_full
