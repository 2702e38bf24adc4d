"""Buckets as a worker of the engine reads them: from arrays in its own process, or from files."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from rollout.engine import _as_files
from rollout.weights import BucketUpdateInfo, read_bucket
from tvr.manifest import Manifest, TensorInfo, checksum
from tvr.records import PolicyVersion

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor(2.5),
    "c": torch.arange(5, dtype=torch.bfloat16),
}
ARRAYS = {name: tensor.reshape(-1).view(torch.uint8).numpy() for name, tensor in TENSORS.items()}
INFOS = [(name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for name, tensor in TENSORS.items()]


def manifest(*buckets: str) -> Manifest:
    """Each bucket holds the tensors whose names are its letters."""
    by_name = {
        name: TensorInfo(name=name, dtype=dtype, shape=tuple(shape), checksum=checksum(ARRAYS[name]))
        for name, dtype, shape in INFOS
    }
    return Manifest(
        version=PolicyVersion(1), buckets=tuple(tuple(by_name[name] for name in names) for names in buckets)
    )


def assert_all_read(bucket: BucketUpdateInfo) -> None:
    found = dict(read_bucket(bucket))
    assert list(found) == list(TENSORS)
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )


def test_arrays_are_read_where_they_lie():
    assert_all_read(BucketUpdateInfo(tensors=INFOS, arrays=ARRAYS))
    ((_, tensor),) = read_bucket(BucketUpdateInfo(tensors=INFOS[:1], arrays=ARRAYS))
    assert tensor.data_ptr() == ARRAYS["a"].ctypes.data


async def test_a_file_holds_a_bucket_until_the_next_is_asked_for(tmp_path: Path):
    buckets = [{name: ARRAYS[name] for name in names} for names in ("abc", "ab", "c")]
    paths = []
    async for infos, path in _as_files(manifest("abc", "ab", "c"), buckets, tmp_path / "weights"):
        assert not any(earlier.exists() for earlier in paths)
        paths.append(path)
        if len(paths) == 1:
            assert_all_read(BucketUpdateInfo(tensors=INFOS, path=str(path)))
        else:
            tensors = [(info.name, info.dtype, info.shape) for info in infos]
            found = dict(read_bucket(BucketUpdateInfo(tensors=tensors, path=str(path))))
            assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in found.items())
    assert len(paths) == 3
    assert os.listdir(tmp_path) == []


async def test_an_update_that_fails_leaves_no_file(tmp_path: Path):
    buckets = [{name: ARRAYS[name] for name in names} for names in ("ab", "c")]
    files = _as_files(manifest("ab", "c"), buckets, tmp_path / "weights")
    await anext(files)
    with pytest.raises(RuntimeError, match="the engine"):
        await files.athrow(RuntimeError("the engine"))
    assert os.listdir(tmp_path) == []


def test_only_tensors_with_another_checksum_have_changed():
    old = manifest("abc")
    other = TensorInfo(name="a", dtype="float32", shape=(2, 3), checksum=checksum(np.zeros(24, np.uint8)))
    new = Manifest(version=PolicyVersion(2), buckets=((other, *old.tensors[1:]),))
    assert new.changed_since(old) == {"a"}
    assert new.changed_since(None) == {"a", "b", "c"}
    unchecked = Manifest(
        version=PolicyVersion(3), buckets=((TensorInfo(name="b", dtype="float32", shape=(), checksum=""),),)
    )
    assert unchecked.changed_since(unchecked) == {"b"}  # nobody knows
