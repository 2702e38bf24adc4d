"""How an engine's worker process takes new weights: vLLM's weight-transfer interface, fed from safetensors files.

vLLM imports this module in the worker before it builds the model (`worker_extension_cls`), which registers the backend
under `star_r1_file`; nothing else imports it. Names are those of Hugging Face's `named_parameters()`. An update is one
`start_weight_update`, any number of files, one `finish_weight_update`; between the first and the last the model cannot
compute, so generation must be paused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

from rollout.engine import WEIGHT_BACKEND


@dataclass
class NoInitInfo(WeightTransferInitInfo):
    """Files need no introduction."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    """One safetensors file that every worker of the engine can read."""

    path: str


class FileWeightTransfer(WeightTransferEngine):
    """Loads each file layer by layer; an update that leaves a parameter out fails."""

    init_info_cls = NoInitInfo
    update_info_cls = FileUpdateInfo

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._missing: set[str] = set()

    def init_transfer_engine(self, init_info: NoInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        # Taken before the reload parts tied parameters, which count once. Quantised layers rename theirs.
        if self.model_config.quantization is None:
            self._missing = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        loaded = self.model.load_weights(_read(update_info.path))
        # A model that does not tell what it loaded cannot be checked.
        self._missing -= self._missing if loaded is None else loaded

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if self._missing:
            raise ValueError(f"the update left out {len(self._missing)} parameters, such as {min(self._missing)}")
        if current_platform.is_cpu():
            repack_embeddings(self.model)

    def shutdown(self) -> None:
        pass


class WorkerExtension:
    """Named by `worker_extension_cls` so that the worker imports this module."""


def repack_embeddings(model: torch.nn.Module) -> None:
    """Pack the (un)embedding again from its weight.

    On a CPU a layer computes with a packed copy. With tied embeddings no update holds `lm_head.weight`, so the reload
    does not touch `lm_head`, and it would silently go on with the old copy.
    """
    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding) and module.quant_method is not None:
            module.quant_method.process_weights_after_loading(module)


def _read(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (not a dict)
            yield name, tensors.get_tensor(name)


WeightTransferEngineFactory.register_engine(WEIGHT_BACKEND, FileWeightTransfer)
