"""A GRPO step as a book would write it, sample by sample in plain PyTorch: what the learner is compared with.

Gradients are compared rather than parameters: Adam's first update is nearly the gradient's sign, so that where a
gradient is rounding noise around zero the parameters of two right computations differ by up to twice the learning rate.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from learner.advantages import step_advantages
from learner.encode import PictureEncoder
from records.samples import ScoredGroup, StepReport

LEARNING_RATE = 1e-3
TEMPERATURE = 0.9


def plain_torch_step(
    folder: str,
    groups: Sequence[ScoredGroup],
    rewards: Sequence[np.ndarray] | None = None,
    kl: tuple[float, Sequence[np.ndarray]] | None = None,
) -> dict[str, Any]:
    """One GRPO step sample by sample with transformers' own forward pass, autograd and torch's AdamW.

    *kl* is the weight of k3 in the loss, and the reference policy's log-probs of every sample.
    """
    policy = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="sdpa")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    encoder = PictureEncoder(folder)
    total = 0.0
    all_logprobs = []
    rewards = [scored.rewards for scored in groups] if rewards is None else rewards
    by_group = step_advantages(rewards, "group_mean", "group_std")
    for scored, advantages in zip(groups, by_group, strict=True):
        for sample, advantage in zip(scored.group.samples, advantages, strict=True):
            trace = sample.trace
            pictures = encoder.encode(scored.group.prompt, trace.prompt_token_ids)
            ids = torch.from_numpy(np.concatenate([trace.prompt_token_ids, trace.token_ids]).astype(np.int64))[None]
            is_image = (ids == encoder.image_token_id).int()
            inputs = {"pixel_values": pictures.pixel_values, "image_grid_thw": pictures.grid_thw}
            inputs = inputs if len(pictures.grid_thw) else {}
            logits = policy(input_ids=ids, mm_token_type_ids=is_image, **inputs).logits[0] / TEMPERATURE
            start = len(trace.prompt_token_ids)
            logprobs = torch.stack([logits[t - 1].log_softmax(-1)[ids[0, t]] for t in range(start, ids.shape[1])])
            ratio = torch.exp(logprobs - torch.from_numpy(trace.logprobs))
            gain = torch.minimum(ratio * float(advantage), ratio.clamp(0.8, 1.2) * float(advantage))
            if advantage < 0:
                gain = gain.clamp(min=3.0 * float(advantage))  # dual clip
            if kl is not None:
                behind = torch.from_numpy(kl[1][len(all_logprobs)]) - logprobs
                gain = gain - kl[0] * (behind.exp() - 1 - behind)
            loss = -gain.mean() / len(scored.group.samples) / len(groups)
            loss.backward()
            total += float(loss.detach())
            all_logprobs.append(logprobs.detach().numpy())
    gradient = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in policy.named_parameters()
    }
    norm = torch.sqrt(sum(part.square().sum() for part in gradient.values()))
    optimizer.step()
    parameters = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    flat = {"loss": total, "grad_norm": float(norm), "gradient": gradient, "parameters": parameters}
    return flat | {"logprobs": all_logprobs}


def gradient_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm of *other*, all parameters together."""
    assert one.keys() == other.keys()
    gap = sum(float((one[name] - other[name]).square().sum()) for name in other)
    return (gap / sum(float(part.square().sum()) for part in other.values())) ** 0.5


def assert_same_step(result: dict[str, Any], reference: dict[str, Any], tolerance: float = 1e-5) -> None:
    """Loss, norm and gradient of the first step, relative to the reference's."""
    report = result["reports"][0]
    assert isinstance(report, StepReport), report
    assert report.loss == pytest.approx(reference["loss"], rel=tolerance, abs=tolerance * 0.01)
    assert report.grad_norm == pytest.approx(reference["grad_norm"], rel=tolerance)
    assert gradient_difference(result["gradient"], reference["gradient"]) < tolerance


def assert_same_update(result: dict[str, Any], reference: dict[str, Any]) -> None:
    """Where the gradient is far above rounding, Adam's first update is learning_rate * sign, the same on both sides."""
    largest = max(float(part.abs().max()) for part in reference["gradient"].values())
    for name, expected in reference["parameters"].items():
        clear = reference["gradient"][name].abs() > 1e-3 * largest
        gap = (result["parameters"][1][name] - expected)[clear].abs()
        assert gap.numel() == 0 or float(gap.max()) < 0.01 * LEARNING_RATE, name
