"""The GRPO loss over answer tokens. Pure.

Every token has a weight, counted once for the whole step before it is split, so that the sum over tokens is the loss
and the gradient does not depend on ranks, packing or accumulation. M tokens of one pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from learner.advantages import group_advantages
from learner.config import LearnerConfig
from tvr.records import ScoredGroup

SUMS = ("loss", "ratio", "clip_fraction", "kl", "entropy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """What the loss needs of each answer token, all `[M]` float32: the sampling policy's log-prob (nats), the sample's
    advantage, and the token's weight in the step. The weights of a whole step sum to 1.
    """

    sampler_logprobs: torch.Tensor
    advantages: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLoss:
    """*loss* is a scalar with its gradient. *sums* `[len(SUMS)]` and *max_abs_log_ratio* are detached; the sums of all
    passes of a step add up to means over its tokens.
    """

    loss: torch.Tensor
    sums: torch.Tensor
    max_abs_log_ratio: torch.Tensor


def token_terms(group: ScoredGroup, groups_in_step: int, scaling: str) -> Tokens:
    """Weights `1 / (P * G * La)`: mean over groups of the mean over samples of the mean over tokens (GRPO, eq. 3)."""
    advantages = group_advantages(group.rewards, scaling)
    traces = [sample.trace for sample in group.group.samples]
    lengths = np.array([len(trace.token_ids) for trace in traces])
    weights = 1.0 / (groups_in_step * len(traces) * lengths)
    return Tokens(
        sampler_logprobs=torch.from_numpy(np.concatenate([trace.logprobs for trace in traces]).astype(np.float32)),
        advantages=torch.from_numpy(np.repeat(advantages, lengths).astype(np.float32)),
        weights=torch.from_numpy(np.repeat(weights, lengths).astype(np.float32)),
    )


def join_tokens(parts: Sequence[Tokens], device: torch.device, weight: float = 1.0) -> Tokens:
    """Tokens of several groups one after the other, their weights times *weight* (0 for a pass that only fills up)."""
    return Tokens(
        sampler_logprobs=torch.cat([part.sampler_logprobs for part in parts]).to(device),
        advantages=torch.cat([part.advantages for part in parts]).to(device),
        weights=weight * torch.cat([part.weights for part in parts]).to(device),
    )


def grpo_loss(
    logprobs: torch.Tensor, tokens: Tokens, config: LearnerConfig, reference_logprobs: torch.Tensor | None = None
) -> TokenLoss:
    """Clipped surrogate against the sampling policy, plus the KL divergence from the reference policy if it is given.

    *logprobs* `[M]` nats, with gradient; *reference_logprobs* `[M]`. GRPO (arXiv 2402.03300): eq. 3 with the KL
    estimator of eq. 4 (k3); the clip may differ up and down (DAPO, arXiv 2503.14476). `entropy` is estimated by the
    mean of -log-prob of the sampled tokens.
    """
    log_ratio = logprobs - tokens.sampler_logprobs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    surrogate = torch.minimum(ratio * tokens.advantages, clipped * tokens.advantages)
    terms = -surrogate
    kl = torch.zeros_like(logprobs)
    if reference_logprobs is not None:
        behind = reference_logprobs - logprobs
        kl = behind.exp() - behind - 1
        terms = terms + config.kl_weight * kl
    loss = (tokens.weights * terms).sum()
    with torch.no_grad():
        is_clipped = clipped * tokens.advantages < ratio * tokens.advantages
        stats = torch.stack([terms, ratio, is_clipped.float(), kl, -logprobs]).double()
        sums = (stats * tokens.weights).sum(-1)
        counted = log_ratio.abs()[tokens.weights > 0]
        max_abs_log_ratio = counted.max() if len(counted) else torch.zeros_like(loss)
    return TokenLoss(loss=loss, sums=sums, max_abs_log_ratio=max_abs_log_ratio)


def spoil_if_not_finite(loss: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
    """*loss*, with the same gradient if it is finite, and otherwise with one that is NaN everywhere.

    A gradient can be finite where the loss is not. All ranks see the norm of the gradient, so that they refuse such a
    step together, without a message of their own.
    """
    return loss + (loss.detach() * 0) * logprobs.sum()
