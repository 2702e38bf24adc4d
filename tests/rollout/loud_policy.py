"""A policy for tests that look at log-probs."""

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from tiny_policy.make import make_tiny_policy


def write_loud_policy(folder: Path) -> None:
    """A fresh tiny policy, its matrices six times as large, so that its logits are not flat and the pictures matter."""
    make_tiny_policy(folder, seed=0)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(6.0)
    model.save_pretrained(folder)
