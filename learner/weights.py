"""Which parameters travel together when a version is published, and as what."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from records.manifest import TensorInfo, checksum


def pack_bucket(
    tensors: Mapping[str, torch.Tensor], keep: bool, staging: torch.Tensor | None = None
) -> tuple[tuple[TensorInfo, ...], dict[str, np.ndarray]]:
    """*tensors* as a bucket, with their part of the manifest. Unless to *keep*, what is in host memory is no copy.

    With *staging*, bytes in host memory, all are copied to there, where they stay until it is used again.
    """
    if staging is not None:
        contents = _stage(tensors, staging)
    else:
        contents = [_bytes(tensor.to("cpu", copy=keep)) for tensor in tensors.values()]
    infos, bucket = [], {}
    for (name, tensor), part in zip(tensors.items(), contents, strict=True):
        content = part.numpy()
        dtype = str(tensor.dtype).removeprefix("torch.")
        infos.append(TensorInfo(name=name, dtype=dtype, shape=tuple(tensor.shape), checksum=checksum(content)))
        bucket[name] = content
    return tuple(infos), bucket


def make_staging(num_bytes: int) -> torch.Tensor:
    """Page-locked, so that a GPU copies to it at the full speed of its bus. Not yet run on a GPU."""
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)


def _stage(tensors: Mapping[str, torch.Tensor], staging: torch.Tensor) -> list[torch.Tensor]:
    sources = [_bytes(tensor) for tensor in tensors.values()]
    sizes = [len(source) for source in sources]
    places = list(staging[: sum(sizes)].split(sizes))
    for place, source in zip(places, sources, strict=True):
        place.copy_(source, non_blocking=True)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return places


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def plan_buckets(sizes: Sequence[tuple[str, int]], max_bytes: int) -> tuple[tuple[str, ...], ...]:
    """Names of each bucket, in the order given, every name once. *sizes* are (name, bytes).

    A bucket holds at most *max_bytes*, or one parameter that is larger.

    >>> plan_buckets([("a", 4), ("b", 5), ("c", 20), ("d", 1)], max_bytes=10)
    (('a', 'b'), ('c',), ('d',))
    """
    if max_bytes < 1:
        raise ValueError(f"max_bytes is {max_bytes}; a bucket must hold at least one byte")
    buckets: list[tuple[str, ...]] = []
    current: list[str] = []
    used = 0
    for name, size in sizes:
        if current and used + size > max_bytes:
            buckets.append(tuple(current))
            current, used = [], 0
        current.append(name)
        used += size
    return tuple([*buckets, tuple(current)] if current else buckets)
