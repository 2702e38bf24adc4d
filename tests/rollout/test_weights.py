"""Buckets as a worker of the engine reads them, from arrays in its own process or from files, and what it checks."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from vllm.model_executor.model_loader.reload import initialize_layerwise_reload, record_metadata_for_reloading

from records.manifest import Manifest, TensorInfo, checksum
from records.samples import PolicyVersion
from rollout.weights import BucketUpdateInfo, ObjectStoreTransfer, check_layers, read_bucket

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
    infos = tuple(tuple(by_name[name] for name in names) for names in buckets)
    return Manifest(version=PolicyVersion(1), buckets=infos, is_whole=True)


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


def test_only_tensors_with_another_checksum_have_changed():
    old = manifest("abc")
    other = TensorInfo(name="a", dtype="float32", shape=(2, 3), checksum=checksum(np.zeros(24, np.uint8)))
    new = Manifest(version=PolicyVersion(2), buckets=((other, *old.tensors[1:]),), is_whole=True)
    assert new.changed_since(old) == {"a"}
    assert new.changed_since(None) == {"a", "b", "c"}
    info = TensorInfo(name="b", dtype="float32", shape=(), checksum="")
    unchecked = Manifest(version=PolicyVersion(3), buckets=((info,),), is_whole=False)
    assert unchecked.changed_since(unchecked) == {"b"}  # nobody knows


class FusedLayer(torch.nn.Module):
    """A weight of four rows, of which a tensor fills two, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4, 3), requires_grad=False)
        self.bias = torch.nn.Parameter(torch.zeros(4), requires_grad=False)
        self.weight.weight_loader = self.load

    def load(self, param: torch.nn.Parameter, loaded: torch.Tensor, half: str) -> None:
        param[{"q": slice(0, 2), "k": slice(2, 4)}[half]].data.copy_(loaded)


class Tied(torch.nn.Module):
    """Two layers of one weight, a fused one and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(3, 2, bias=False)
        self.head = torch.nn.Linear(3, 2, bias=False)
        self.head.weight = self.embed.weight
        self.qk = FusedLayer()
        self.norm = torch.nn.LayerNorm(3, bias=False)


PARTS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "embed": ("embed.weight", (torch.full((2, 3), 1.0),)),
    "q": ("qk.weight", (torch.full((2, 3), 2.0), "q")),
    "k": ("qk.weight", (torch.full((2, 3), 3.0), "k")),
    "bias": ("qk.bias", (torch.full((4,), 4.0),)),
    "norm": ("norm.weight", (torch.full((3,), 5.0),)),
}


@pytest.mark.parametrize(
    ("parts", "is_whole", "message"),
    [
        ("embed q k bias norm", True, None),
        ("q k bias", False, None),
        ("embed", False, None),
        ("embed q k bias", True, r"left out 1 parameters, such as norm\.weight"),
        ("q k bias norm", True, r"left out 1 parameters, such as embed\.weight"),
        ("q bias", False, "1 layers only part of their weights, such as qk"),
        ("embed q k norm", True, "1 layers only part of their weights, such as qk"),
        ("bias", False, "1 layers only part of their weights, such as qk"),
    ],
)
def test_an_update_gives_a_layer_all_or_nothing(parts: str, is_whole: bool, message: str | None) -> None:
    model = Tied()
    record_metadata_for_reloading(model)
    initialize_layerwise_reload(model)
    for part in parts.split():
        name, arguments = PARTS[part]
        parameter = model.get_parameter(name)
        parameter.weight_loader(parameter, *arguments)
    with nullcontext() if message is None else pytest.raises(ValueError, match=message):
        check_layers(model, is_whole)


def test_a_tensor_that_the_model_passes_over_is_an_error() -> None:
    class Forgetful(torch.nn.Module):
        def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
            return {name for name, _ in tensors if name != "b"}

    transfer = ObjectStoreTransfer.__new__(ObjectStoreTransfer)
    transfer.model, transfer._taken = Forgetful(), set()
    with pytest.raises(ValueError, match="no place for b"):
        transfer.receive_weights(BucketUpdateInfo(tensors=INFOS, arrays=ARRAYS))
