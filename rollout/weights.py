"""How an engine's workers take new weights from the object store: a backend of vLLM's weight-transfer interface.

vLLM imports this module in the worker before it builds the model (`worker_extension_cls`), which registers the backend;
nothing else imports it. Names are those of Hugging Face's `named_parameters()`. An update is one `start_weight_update`,
any number of buckets, one `finish_weight_update`; between the first and the last the model cannot compute, and the
engine must be paused.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

from rollout.config import OBJECT_STORE
from rollout.orphan import end_with_worker


@dataclass
class NoInitInfo(WeightTransferInitInfo):
    """The object store needs no introduction."""


@dataclass
class BucketUpdateInfo(WeightTransferUpdateInfo):
    """One bucket: name, dtype and shape of its *tensors*, and their bytes, by name or one after another in a file.

    A worker in the same process is given the *arrays* as they lie in the object store, one in a process of its own the
    *path* of a file that it can read.
    """

    tensors: Sequence[tuple[str, str, Sequence[int]]]
    arrays: Mapping[str, np.ndarray] | None = None
    path: str | None = None


class ObjectStoreTransfer(WeightTransferEngine):
    """Loads each bucket layer by layer; an update that leaves a parameter out fails."""

    init_info_cls = NoInitInfo
    update_info_cls = BucketUpdateInfo

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

    def receive_weights(self, update_info: BucketUpdateInfo) -> None:
        loaded = self.model.load_weights(read_bucket(update_info))
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


def read_bucket(bucket: BucketUpdateInfo) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors, which are views: read only, and not longer than the bucket lives."""
    file = None if bucket.path is None else np.memmap(bucket.path, mode="r")
    at = 0
    for name, dtype_name, shape in bucket.tensors:
        dtype = getattr(torch, dtype_name)
        if file is not None:
            size = prod(shape) * dtype.itemsize
            content, at = file[at : at + size], at + size
        else:
            assert bucket.arrays is not None, "a bucket has arrays or a path"
            content = bucket.arrays[name]
        yield name, torch.from_numpy(content).view(dtype).reshape(tuple(shape))


warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nobody writes
end_with_worker()
WeightTransferEngineFactory.register_engine(OBJECT_STORE, ObjectStoreTransfer)
