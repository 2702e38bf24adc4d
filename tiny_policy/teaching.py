"""One stretch of supervised training: steps under a cosine, a curve, and a checkpoint to go on from."""

import json
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

logger = logging.getLogger(__name__)

MEASURE_EVERY = 100
CLIP = 1.0
LAST_RATE = 0.02  # of the peak; the gain comes while the rate falls

Progress = Callable[[int, int, str], None]
"""`progress(done, total, note)`."""


class StretchConfig(BaseModel):
    """How long and how fast to learn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(gt=0, description="Optimiser steps.")
    batch: int = Field(gt=0, description="Examples a step.")
    matrix_rate: float = Field(
        ge=0,
        description="Peak rate of Muon, for the matrices inside the layers; 2 % warm-up, then a cosine to 2 %. Muon "
        "leaves plateaus, such as telling shapes apart, that AdamW stays on. 0: AdamW for all.",
    )
    other_rate: float = Field(gt=0, description="Peak rate of AdamW, for all other weights; the same curve.")


def teach(
    config: StretchConfig,
    name: str,
    out: Path,
    module: nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    measure: Callable[[], dict[str, float]],
    progress: Progress,
) -> None:
    """Train those weights of *module* that want a gradient; goes on where a killed call stopped, or does nothing more.

    `loss_of(step)` must depend on the step alone. What *measure* says goes to `curve.jsonl` in *out* every
    `MEASURE_EVERY` steps, with the checkpoint `<name>.pt`. Raises FloatingPointError on a gradient that is not finite,
    before the update, and ValueError if the checkpoint was taught with another *config*.
    """
    checkpoint = out / f"{name}.pt"
    optimizers = make_optimizers(module, config)
    done, spent = 0, 0.0
    if checkpoint.exists():
        saved: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        _check_same(checkpoint, saved["config"], config)
        module.load_state_dict(saved["module"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        done, spent = saved["step"], saved["seconds"]
    began = time.monotonic() - spent
    for step in range(done, config.steps):
        _set_rates(optimizers, config, step)
        loss = _step(module, optimizers, loss_of(step))
        done = step + 1
        progress(done, config.steps, f"loss {loss:.3f}")
        if done % MEASURE_EVERY == 0 or done == config.steps:
            row = {"phase": name, "step": done, "loss": round(loss, 4), **measure()}
            spent = time.monotonic() - began
            with (out / "curve.jsonl").open("a") as file:
                file.write(json.dumps({**row, "minutes": round(spent / 60, 1)}) + "\n")
            logger.info("%s", row)
            states = [optimizer.state_dict() for optimizer in optimizers]
            part = checkpoint.with_suffix(".part")
            torch.save(
                {
                    "config": config.model_dump(mode="json"),
                    "module": module.state_dict(),
                    "optimizers": states,
                    "step": done,
                    "seconds": spent,
                },
                part,
            )
            os.replace(part, checkpoint)


def _check_same(checkpoint: Path, taught: dict[str, Any], config: StretchConfig) -> None:
    now = config.model_dump(mode="json")
    changes = [
        f"{key} = {taught.get(key)!r}, now {now.get(key)!r}" for key in now | taught if taught.get(key) != now.get(key)
    ]
    if changes:
        raise ValueError(
            f"{checkpoint}: was taught with {'; '.join(changes)}; remove it and those of later phases to teach them "
            "anew, or give another out"
        )


def make_optimizers(module: nn.Module, config: StretchConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, heads, vectors and the patch embedding."""
    trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    matrices = {
        name: weight
        for name, weight in trained.items()
        if config.matrix_rate and weight.ndim == 2 and ("blocks." in name or "layers." in name or "merger." in name)
    }
    rest = [weight for name, weight in trained.items() if name not in matrices]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.01)]
    if matrices:
        muon = torch.optim.Muon(list(matrices.values()), weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        optimizers.append(muon)
    return optimizers


def _set_rates(optimizers: list[torch.optim.Optimizer], config: StretchConfig, step: int) -> None:
    warmup = min(1.0, (step + 1) / max(1, config.steps // 50))
    cosine = LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * step / config.steps)) / 2
    for optimizer, rate in zip(optimizers, (config.other_rate, config.matrix_rate), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate * warmup * cosine


def _step(module: nn.Module, optimizers: list[torch.optim.Optimizer], loss: torch.Tensor) -> float:
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP)
    if not torch.isfinite(norm):
        raise FloatingPointError(f"the gradient's norm is {norm}; lower the rates")
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()
