"""The learner's side of vLLM's NCCL weight transfer. Not yet run on a GPU.

Rank 0 broadcasts; all ranks gather each parameter, one at a time. The driver calls the rollout workers meanwhile.
"""

from collections.abc import Iterator
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from learner.engine import Engine


class NcclSender:
    """Returns when rank 0 has met the engines' workers, which must join at the same time."""

    def __init__(self, engine: Engine, rank: int, address: str, port: int, world_size: int) -> None:
        place = NCCLTrainerInitInfo(address, port, world_size, rank=rank)
        self._trainer = WeightTransferTrainerFactory.trainer_init(place, client=_Nobody(), source=_Parameters(engine))

    def send(self) -> None:
        """Every engine's workers must be receiving."""
        self._trainer.send_weights()


class _Parameters(WeightSource):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, dtype, shape) for name, dtype, shape in self._engine.published_parameters()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, _, _ in self._engine.published_parameters():
            with self._engine.gathered([name]) as tensors:
                yield name, tensors[name]


class _Nobody:
    """vLLM would have the trainer call the engines; here the driver does, which knows their deadlines."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """The driver calls `RolloutWorker.join`."""

    def start_weight_update(self) -> None:
        """`RolloutWorker.receive` does this and the next two."""

    def update_weights(self, update_info: Any) -> None:
        """See above."""

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """See above."""
