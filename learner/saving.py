"""The policy as a plain Hugging Face folder, gathered and written a file at a time: no rank ever holds all of it.

What a file holds, and under which names, is left to transformers' own `save_pretrained`. Where the weights need more
than one file they are `model-00001-of-00003.safetensors` and so on with an index, otherwise `model.safetensors`.
"""

import json
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open

from learner.engine import Engine
from learner.weights import plan_buckets

SHARD_BYTES = 1 << 30
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def save_policy(engine: Engine, folder: Path) -> None:
    """Rank 0 writes, in place of weights that were there; all ranks call this and return when the folder is whole."""
    sizes = [(name, prod(shape) * dtype.itemsize) for name, dtype, shape in engine.parameters()]
    buckets = plan_buckets(sizes, SHARD_BYTES)
    files = [f"model-{number:05d}-of-{len(buckets):05d}.safetensors" for number in range(1, len(buckets) + 1)]
    files = files if len(files) > 1 else [WEIGHTS]
    if engine.rank == 0:
        for old in folder.glob("model*.safetensors*"):
            old.unlink()
    for file, names in zip(files, buckets, strict=True):
        with engine.gathered(names) as tensors:
            if engine.rank == 0:
                _write(engine, folder, file, tensors)
        engine.barrier()  # a rank waits for one file at a time, however long all of them take
    if engine.rank == 0 and len(files) > 1:
        _write_index(folder, files, sum(size for _, size in sizes))
    engine.barrier()


def _write(engine: Engine, folder: Path, file: str, tensors: dict[str, torch.Tensor]) -> None:
    """The configuration comes with every file, and is the same each time."""
    part = folder / "part"
    engine.model.save_pretrained(part, state_dict={name: tensor.cpu() for name, tensor in tensors.items()})
    (part / WEIGHTS).replace(folder / file)
    for other in part.iterdir():
        other.replace(folder / other.name)
    part.rmdir()


def _write_index(folder: Path, files: Sequence[str], total_size: int) -> None:
    places: dict[str, str] = {}
    for file in files:
        with safe_open(folder / file, framework="pt") as content:
            places |= dict.fromkeys(content.keys(), file)
    index = {"metadata": {"total_size": total_size}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
