"""What a published version consists of, and the check that all of it has come.

Weights travel in buckets: each is a dict from a tensor's name to its bytes, a one-dimensional uint8 array, so that any
dtype travels as it is and an object store can hand the arrays out without a copy. The manifest says what must be there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from records.samples import PolicyVersion

Bucket = Mapping[str, np.ndarray]
"""Bytes of each tensor by name, `[num_bytes]` uint8."""


class DamagedWeights(ValueError):
    """Buckets are not what their manifest says. Nothing was loaded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """One parameter under its name in the Hugging Face model.

    For example `TensorInfo(name="lm_head.weight", dtype="bfloat16", shape=(64, 32), checksum="d24ec4f1a98c6e5b")`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    checksum: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The parameters of *version* in the order and the buckets in which they travel.

    If it *is_whole* they are all of the policy's. Otherwise those that training cannot change are left out: they are as
    in the model folder that the run began with. Without checksums (`""`) they travel by a transport that answers for
    itself, and count as changed.
    """

    version: PolicyVersion
    buckets: tuple[tuple[TensorInfo, ...], ...]
    is_whole: bool

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        return tuple(info for bucket in self.buckets for info in bucket)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(info.name for info in self.tensors)

    def changed_since(self, other: "Manifest | None") -> set[str]:
        """Names of the tensors that may differ from those of *other*; all of them if it is None."""
        known = {info.name: info.checksum for info in other.tensors} if other is not None else {}
        return {info.name for info in self.tensors if not info.checksum or known.get(info.name) != info.checksum}

    def check(self, buckets: Sequence[Bucket]) -> None:
        """Raise DamagedWeights unless *buckets* hold every tensor whole, byte for byte."""
        if len(buckets) != len(self.buckets):
            raise DamagedWeights(f"version {self.version} has {len(self.buckets)} buckets, and {len(buckets)} came")
        for number, (expected, bucket) in enumerate(zip(self.buckets, buckets, strict=True)):
            if different := {info.name for info in expected} ^ set(bucket):
                raise DamagedWeights(f"bucket {number} of version {self.version} lacks or adds {min(different)}")
            for info in expected:
                if checksum(bucket[info.name]) != info.checksum:
                    raise DamagedWeights(f"{info.name} of version {self.version} is not what the learner sent")


def checksum(content: np.ndarray) -> str:
    """XXH3 of the bytes: it finds damage, not forgery, at the speed of memory."""
    return xxhash.xxh3_64_hexdigest(content.data)
