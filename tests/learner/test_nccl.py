"""The learner's side of the NCCL transfer, as far as it goes without a GPU: what it would send."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from learner.nccl import _Parameters


class OneLayer:
    """An engine whose weights are shared out: they are whole inside `gathered` alone, one at a time."""

    def __init__(self) -> None:
        self.weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
        self.open: list[str] = []

    def published_parameters(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        return [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.weights.items()]

    @contextmanager
    def gathered(self, names: list[str]) -> Iterator[dict[str, torch.Tensor]]:
        self.open += names
        yield {name: self.weights[name] for name in names}
        self.open = [name for name in self.open if name not in names]


def test_what_is_declared_is_what_is_sent_one_parameter_at_a_time():
    engine = OneLayer()
    source = _Parameters(engine)
    sent = []
    for name, tensor in source:
        assert engine.open == [name]
        sent.append((name, tensor.dtype, tuple(tensor.shape)))
    assert engine.open == []
    assert [(meta.name, meta.dtype, meta.shape) for meta in source.metadata()] == sent
