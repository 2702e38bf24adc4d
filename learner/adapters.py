"""Low-rank adapters (LoRA, arXiv 2106.09685) whose layers compute with the very weight that is published.

A layer with the weight W and the adapter `s B A`, `s = alpha / rank`, is published as `W' = W + s B A`, rounded to W's
dtype, for that is what engines load. peft's layers compute `x W^T + s (x A^T) B^T`, where nothing is rounded: another
policy than the one that is sampled from, by as much as many steps in bfloat16. Here a layer computes with W', and
learns A and B as if W' had not been rounded (a straight-through gradient).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class AdaptedLinear(torch.nn.Module):
    """Takes the place of a linear layer, whose weight and bias it keeps under their names.

    All four parameters are its own, so that ZeRO-3 gathers them together when it is called.
    """

    bias: torch.nn.Parameter | None

    def __init__(self, layer: torch.nn.Linear, rank: int, alpha: int) -> None:
        super().__init__()
        self.weight = layer.weight
        self.register_parameter("bias", layer.bias)
        self.lora_A = torch.nn.Parameter(layer.weight.new_empty(rank, layer.in_features))
        self.lora_B = torch.nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
        torch.nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as a linear layer's
        self.scale = alpha / rank
        self.is_adapted = True

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.is_adapted:
            return torch.nn.functional.linear(inputs, self.weight, self.bias)
        return _MergedProduct.apply(inputs, self.weight, self.bias, self.lora_A, self.lora_B, self.scale)

    def merged(self) -> torch.Tensor:
        """`[out, in]`, as published. Every parameter must be whole."""
        return _merge(self.weight, self.lora_A, self.lora_B, self.scale)


def add_adapters(model: Any, rank: int, alpha: int) -> None:
    """To every linear layer that is trained, but for the head; after that only they are trained."""
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not model.lm_head and module.weight.requires_grad
    }
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, AdaptedLinear(layer, rank, alpha))


def adapted_layers(model: Any) -> list[AdaptedLinear]:
    return [module for module in model.modules() if isinstance(module, AdaptedLinear)]


@contextmanager
def without_adapters(model: Any) -> Iterator[None]:
    """The starting policy, for as long as this lasts."""
    layers = adapted_layers(model)
    for layer in layers:
        layer.is_adapted = False
    try:
        yield
    finally:
        for layer in layers:
            layer.is_adapted = True


@torch.no_grad()
def _merge(weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    """Rounded once, at the end."""
    return torch.addmm(weight.float(), up.float(), down.float(), alpha=scale).to(weight.dtype)


class _MergedProduct(torch.autograd.Function):
    """`x W'^T + bias`. W' is made again in the backward pass, so that no layer's stays in memory meanwhile."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight, down, up)
        ctx.scale = scale
        return torch.nn.functional.linear(inputs, _merge(weight, down, up, scale), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weight, down, up = ctx.saved_tensors
        to_inputs = gradient @ _merge(weight, down, up, ctx.scale) if ctx.needs_input_grad[0] else None
        rows, outputs = inputs.flatten(0, -2), gradient.flatten(0, -2)
        to_down = ctx.scale * (outputs @ up).T @ rows
        to_up = ctx.scale * outputs.T @ (rows @ down.T)
        return to_inputs, None, None, to_down, to_up, None
