"""How an engine's workers take new weights from the object store: a backend of vLLM's weight-transfer interface.

vLLM imports this module in the worker before it builds the model (`worker_extension_cls`), which registers the backend;
nothing else imports it. Names are those of Hugging Face's `named_parameters()`. An update is one `start_weight_update`,
any number of buckets, one `check_update`, one `finish_weight_update`; between the first and the last the model cannot
compute, and the engine must be paused. Layers that an update has nothing of stay as they are.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
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
    """Loads each bucket layer by layer."""

    init_info_cls = NoInitInfo
    update_info_cls = BucketUpdateInfo

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._taken: set[str] = set()

    def init_transfer_engine(self, init_info: NoInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: BucketUpdateInfo) -> None:
        """Raises ValueError for a tensor that the model does not take. vLLM passes over some, a bias it has not."""
        names = {name for name, _, _ in update_info.tensors}
        if names <= self._taken:
            self.model.load_weights(read_bucket(update_info))
            return
        for name, tensor in read_bucket(update_info):  # one by one costs milliseconds each, so it is done once
            if not self.model.load_weights([(name, tensor)]):
                raise ValueError(f"the engine has no place for {name}")
        self._taken |= names

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if current_platform.is_cpu():
            repack_embeddings(self.model)

    def shutdown(self) -> None:
        pass


class WorkerExtension:
    """What a worker can be asked beside vLLM's own. Named by `worker_extension_cls`."""

    get_model: Callable[[], torch.nn.Module]

    def check_update(self, is_whole: bool) -> None:
        """Before `finish_weight_update`, of any transport; *is_whole*: the update was to load every layer."""
        check_layers(self.get_model(), is_whole)


def check_layers(model: torch.nn.Module, is_whole: bool) -> None:
    """Raise ValueError if the reload that goes on in *model* gave a layer only part of its weights.

    The rest would be whatever lay in memory. If the update *is_whole*, neither may a layer have got nothing; in others
    such layers keep what they have.
    """
    in_part: list[str] = []
    left_out: dict[int, str] = {}
    loaded: set[int] = set()
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        is_finished = info.kernel_tensors is None  # vLLM forgets about a layer when all its elements have come
        weights = dict(layer.named_parameters(recurse=False)) if is_finished else info.kernel_tensors[0]
        by_id = {id(weight): f"{name}.{key}" for key, weight in weights.items()}
        if not is_finished and info.load_numel == 0:
            left_out = by_id | left_out  # a tied one by its first name
            continue
        loaded |= set(by_id)
        # Of a padded vocabulary not all elements come.
        is_padded = isinstance(layer, VocabParallelEmbedding) and {key for key, _ in info.loaded_weights} >= set(
            weights
        )
        if not is_finished and weights and not is_padded:
            in_part.append(name)
    if in_part:
        raise ValueError(f"the update gave {len(in_part)} layers only part of their weights, such as {min(in_part)}")
    missing = [name for weight, name in left_out.items() if weight not in loaded]
    if is_whole and missing:
        raise ValueError(f"the update left out {len(missing)} parameters, such as {min(missing)}")


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


# `check_layers` says what is wrong; this is said of every layer without weights, or that training cannot change.
logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").addFilter(
    lambda record: "Failed to load weights" not in record.msg
)
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nobody writes
end_with_worker()
WeightTransferEngineFactory.register_engine(OBJECT_STORE, ObjectStoreTransfer)
