"""The losses over answer tokens: policy gradients, and imitation. Pure.

Every token has a weight, counted once for the whole step before it is split, so that the sum over tokens is the loss
and the gradient does not depend on ranks, packing or accumulation. A sample is always whole within one pass.

P groups of G samples in a step, La tokens in an answer, M tokens and S samples in a pass.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from learner.advantages import shaped_rewards, step_advantages
from learner.loss_config import LossConfig
from records.samples import ScoredGroup, Trace

SUMS = (
    "loss",
    "ratio",
    "clip_fraction",
    "kl",
    "entropy",
    "sampler_kl",
    "truncated_fraction",
    "masked_token_fraction",
    "masked_sample_fraction",
)
"""What `policy_loss` sums up. Over all passes of a step: the loss, and means over the tokens that are learned from.

*ratio* learner over sampler; *clip_fraction* tokens whose ratio was clipped; *kl* from the reference (0 without one);
*entropy* estimated by -log-prob of the sampled tokens; *sampler_kl* of the sampler from the learner (k3); the shares of
tokens whose behaviour weight was truncated, that were masked one by one, and that lie in masked samples.
"""

NLL_SUMS = ("loss", "entropy")
"""What `nll_loss` sums up, as in `SUMS`."""

FARTHEST = 20.0
"""Largest log-ratio (nats) of a token that is learned from. Of tokens that the sampler really drew, fewer than 2e-9 lie
beyond (Markov's inequality, the mean ratio being 1): what lies there tells that something is wrong.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """What the loss needs of each answer token, all `[M]`, float32 but for *sample_index*.

    *sampler_logprobs* of the sampling policy (nats); *advantages* of the token's sample; *weights* in the step's loss;
    *counted* weights in the step's statistics, which sum to 1 over the step; *sample_index* int64, which sample of the
    pass (0, 0, 0, 1, 1, ...); *reference_logprobs* of the starting policy, if the loss needs it.
    """

    sampler_logprobs: torch.Tensor
    advantages: torch.Tensor
    weights: torch.Tensor
    counted: torch.Tensor
    sample_index: torch.Tensor
    reference_logprobs: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLoss:
    """*loss* is a scalar with its gradient; all else is detached.

    *sums* float64, `[len(SUMS)]` or `[len(NLL_SUMS)]`: those of all passes of a step add up. *max_abs_log_ratio* of
    learner to sampler. *finite_by_sample* `[S]` bool: whether a sample's log-probs and terms are all finite.
    """

    loss: torch.Tensor
    sums: torch.Tensor
    max_abs_log_ratio: torch.Tensor
    finite_by_sample: torch.Tensor


def step_tokens(
    groups: Sequence[ScoredGroup],
    config: LossConfig,
    max_answer_tokens: int,
    reference: Sequence[Sequence[np.ndarray]] | None = None,
) -> list[list[Tokens]]:
    """All samples of a step, by group: advantages, and weights over the whole step.

    *reference* by group and sample `[La]`: log-probs of the starting policy, needed if `config.needs_reference`. A
    group that is left out (`equal_groups`) has weights 0. One without a gradient has *counted* 0, so that it can be
    skipped.
    """
    assert reference is not None or not config.needs_reference, "the KL needs the starting policy's log-probs"
    by_group = [None] * len(groups) if reference is None else list(reference)
    rewards = [
        shaped_rewards(group, config, max_answer_tokens, logprobs)
        for group, logprobs in zip(groups, by_group, strict=True)
    ]
    is_in = [config.equal_groups == "count" or group.has_signal for group in groups]
    kept = [group for group, inside in zip(rewards, is_in, strict=True) if inside]
    has_signal = [group.has_signal for group, inside in zip(groups, is_in, strict=True) if inside]
    advantages = iter(step_advantages(kept, config.baseline, config.advantage_scaling, has_signal))
    num_tokens = sum(_num_tokens(group) for group, inside in zip(groups, is_in, strict=True) if inside)
    step = []
    for group, logprobs, inside in zip(groups, by_group, is_in, strict=True):
        size = len(group.scores)
        of_samples = next(advantages) if inside else np.zeros(size)
        parts = []
        for index, sample in enumerate(group.group.samples):
            denominator = {
                "sample": len(kept) * size * len(sample.trace.token_ids),
                "token": num_tokens,
                "constant": len(kept) * size * max_answer_tokens,
                "sum": len(kept) * size,
            }[config.weighting]
            weight = 1.0 / denominator if inside else 0.0
            parts.append(_uncounted(sample.trace, of_samples[index], weight, logprobs[index] if logprobs else None))
        step.append(parts)
    learned = [part for parts in step if has_gradient(parts, config) for part in parts]
    num_learned = sum(len(part.weights) for part in learned)
    for part in learned:
        part.counted.fill_(1.0 / num_learned)
    return step


def has_gradient(parts: Sequence[Tokens], config: LossConfig) -> bool:
    """Whether a group can move the policy: by its advantages, or by the KL in the loss. If not, skip its pass."""
    has_kl = config.needs_reference and config.kl_in == "loss"
    return any(bool((part.weights != 0).any()) and (has_kl or bool(part.advantages.any())) for part in parts)


def join_tokens(parts: Sequence[Tokens], device: torch.device, weight: float = 1.0) -> Tokens:
    """Tokens of several samples one after the other, their weights times *weight* (0 for a pass that only fills up)."""
    starts = accumulate((_num_samples(part) for part in parts[:-1]), initial=0)
    sample_index = [part.sample_index + start for part, start in zip(parts, starts, strict=True)]
    references = [part.reference_logprobs for part in parts if part.reference_logprobs is not None]
    assert len(references) in (0, len(parts)), "some tokens have reference log-probs and some have not"
    return Tokens(
        sampler_logprobs=torch.cat([part.sampler_logprobs for part in parts]).to(device),
        advantages=torch.cat([part.advantages for part in parts]).to(device),
        weights=weight * torch.cat([part.weights for part in parts]).to(device),
        counted=weight * torch.cat([part.counted for part in parts]).to(device),
        sample_index=torch.cat(sample_index).to(device),
        reference_logprobs=torch.cat(references).to(device) if references else None,
    )


def policy_loss(logprobs: torch.Tensor, tokens: Tokens, config: LossConfig) -> TokenLoss:
    """The policy gradient's surrogate, and the KL divergence from the reference policy if it is in the loss.

    *logprobs* `[M]` nats, with gradient. `sum of weights * (behaviour weight * objective + kl_weight * KL)`: masks drop
    the objective, not the KL, and leave the denominators in the weights as they are.

    A ratio beyond `FARTHEST` makes its term infinite, whatever clips or truncates it, unless it is masked: the step
    is refused on this bound, and not on what a gradient's norm happens to overflow at, which depends on the ZeRO stage.
    """
    own = logprobs.detach()
    gap = own - tokens.sampler_logprobs
    behaviour, masks = _behaviour_weights(gap, tokens.sample_index, config)
    # Neither is only multiplied by 0: where the ratio is too large for a float, that makes 0 * inf.
    behaviour = torch.where(tokens.advantages != 0, behaviour, torch.zeros_like(own))
    log_ratio = logprobs - (own if config.proximal == "learner" else tokens.sampler_logprobs)
    log_ratio = torch.where(behaviour != 0, log_ratio, torch.zeros_like(own))
    objective, is_clipped = _objective(log_ratio, logprobs, tokens, config)
    terms = torch.where((behaviour != 0) & (gap > FARTHEST), math.inf, behaviour * objective)
    kl = torch.zeros_like(own)
    if tokens.reference_logprobs is not None:
        kl = _kl(logprobs, tokens.reference_logprobs, config.kl_estimator)
    if config.needs_reference and config.kl_in == "loss":
        assert tokens.reference_logprobs is not None, "the KL needs the starting policy's log-probs"
        terms = terms + config.kl_weight * kl
    loss = (tokens.weights * terms).sum()
    wide = gap.double()
    means = {
        "ratio": wide.exp(),
        "clip_fraction": is_clipped,
        "kl": kl.detach(),
        "entropy": -own,
        "sampler_kl": wide.expm1() - wide,
    } | masks
    sums = [tokens.weights.double() @ terms.detach().double()]
    sums += [tokens.counted.double() @ means[name].double() for name in SUMS[1:]]
    return TokenLoss(
        loss=loss,
        sums=torch.stack(sums),
        max_abs_log_ratio=torch.where(tokens.counted > 0, gap.abs(), torch.zeros_like(gap)).max(),
        finite_by_sample=_finite_by_sample(terms.detach() + own, tokens),
    )


def imitation_tokens(lengths: Sequence[int]) -> list[Tokens]:
    """One Tokens for each answer to imitate, of so many tokens: every token of the step counts alike."""
    share = 1.0 / sum(lengths)
    return [
        Tokens(
            sampler_logprobs=torch.zeros(length),
            advantages=torch.zeros(length),
            weights=torch.full((length,), share),
            counted=torch.full((length,), share),
            sample_index=torch.zeros(length, dtype=torch.int64),
        )
        for length in lengths
    ]


def nll_loss(logprobs: torch.Tensor, tokens: Tokens) -> TokenLoss:
    """Supervised fine-tuning: the weighted sum of -log-prob. *logprobs* `[M]` nats, with gradient."""
    loss = -(tokens.weights * logprobs).sum()
    entropy = tokens.counted.double() @ -logprobs.detach().double()
    return TokenLoss(
        loss=loss,
        sums=torch.stack([loss.detach().double(), entropy]),
        max_abs_log_ratio=torch.zeros_like(loss.detach()),
        finite_by_sample=_finite_by_sample(logprobs.detach(), tokens),
    )


def spoil_if_not_finite(loss: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
    """*loss*, with the same gradient if it is finite, and otherwise with one that is NaN everywhere.

    A gradient can be finite where the loss is not. All ranks see the norm of the gradient, so that they refuse such a
    step together, without a message of their own.
    """
    return loss + (loss.detach() * 0) * logprobs.sum()


def _uncounted(trace: Trace, advantage: float, weight: float, reference: np.ndarray | None) -> Tokens:
    length = len(trace.token_ids)
    return Tokens(
        sampler_logprobs=torch.from_numpy(trace.logprobs.astype(np.float32)),
        advantages=torch.full((length,), float(advantage)),
        weights=torch.full((length,), weight),
        counted=torch.zeros(length),
        sample_index=torch.zeros(length, dtype=torch.int64),
        reference_logprobs=None if reference is None else torch.from_numpy(reference.astype(np.float32)),
    )


def _objective(
    log_ratio: torch.Tensor, logprobs: torch.Tensor, tokens: Tokens, config: LossConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """`[M]` to be minimised, and where a ratio was clipped."""
    advantages = tokens.advantages
    if config.objective == "reinforce":  # RLOO, arXiv 2402.14740
        return -advantages * logprobs, torch.zeros_like(advantages, dtype=torch.bool)
    if config.objective == "cispo":  # MiniMax-M1, arXiv 2506.13585, eq. 4 and 5
        ratio = log_ratio.detach().exp()
        bounded = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
        return -bounded * advantages * logprobs, bounded != ratio
    if config.objective == "sequence_clip":
        # GSPO, arXiv 2507.18071, as GSPO-token: the sequence's ratio in value, the token's own log-prob in gradient.
        # Equal to the gradient of the sequence's ratio, and a masked token's siblings do not move it.
        log_ratio = _sample_mean(log_ratio.detach(), tokens.sample_index) + (log_ratio - log_ratio.detach())
    # min(r A, clip(r) A): PPO (arXiv 1707.06347), GRPO (2402.03300, eq. 3), with two bounds DAPO (2503.14476). Where
    # A < 0 that bounds r from below only; dual clip (1912.09729) bounds it from above: max(min(r A, clip(r) A), c A).
    # Limited before exp: a clipped ratio too large for a float then has gradient 0, not 0 * inf.
    low = math.log1p(-config.clip_low) if config.clip_low < 1 else -math.inf
    high, bound = math.log1p(config.clip_high), math.log(config.ratio_bound)
    limited = torch.where(advantages > 0, log_ratio.clamp(max=high), log_ratio.clamp(min=low, max=bound))
    return -limited.exp() * advantages, limited != log_ratio


def _behaviour_weights(
    gap: torch.Tensor, sample_index: torch.Tensor, config: LossConfig
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """`[M]` what each token's objective counts, 0 where it is masked; and by stat where it was corrected.

    *gap* is log-prob of the learner minus the sampler's. Decoupled objective: Hilton et al. (arXiv 2110.00641), AReaL
    (arXiv 2505.24298). There is one update a step, so the proximal policy is the learner itself, exactly and for free.
    Truncating is TIS (Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training", 2025);
    masking tokens is IcePop (arXiv 2510.18855), there outside [0.5, 5]; samples are masked by the geometric mean of
    their ratios, whatever the proximal policy.
    """
    weight = gap.exp() if config.proximal == "learner" else torch.ones_like(gap)
    truncated = masked_tokens = torch.zeros_like(gap, dtype=torch.bool)
    if config.correction == "truncate":
        truncated = weight > config.correction_high
        weight = weight.clamp(max=config.correction_high)
    elif config.correction == "mask":
        masked_tokens = _is_outside(weight, config.correction_low, config.correction_high)
    sample_ratio = _sample_mean(gap, sample_index).exp()
    bounds = config.sequence_mask_low or 0.0, config.sequence_mask_high or math.inf
    masked_samples = _is_outside(sample_ratio, *bounds)
    return torch.where(masked_tokens | masked_samples, torch.zeros_like(gap), weight), {
        "truncated_fraction": truncated,
        "masked_token_fraction": masked_tokens,
        "masked_sample_fraction": masked_samples,
    }


def _is_outside(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """False for NaN: what is not a number is not masked, and so stops the step."""
    return (values < low) | (values > high)


def _kl(logprobs: torch.Tensor, reference_logprobs: torch.Tensor, estimator: str) -> torch.Tensor:
    """`[M]` KL divergence from the reference at each token (Schulman, "Approximating KL Divergence", 2020).

    With p the policy, q the reference, d = log p - log q, on samples of p, and minimised as they stand: k2 = d^2 / 2
    has on average the gradient E[d grad log p] of KL(p, q), k3 = exp(-d) - 1 + d (GRPO, arXiv 2402.03300, eq. 4) has
    E[(1 - q / p) grad log p], that of KL(q, p); k1 = d has E[grad log p] = 0, and LossConfig refuses it in the loss.
    """
    ahead = logprobs - reference_logprobs
    if estimator == "k1":
        return ahead
    return ahead**2 / 2 if estimator == "k2" else torch.expm1(-ahead) + ahead


def _sample_mean(values: torch.Tensor, sample_index: torch.Tensor) -> torch.Tensor:
    """`[M]` each token's mean over its sample."""
    lengths = sample_index.bincount()
    totals = torch.zeros(len(lengths), dtype=torch.float64, device=values.device)
    means = totals.index_add(0, sample_index, values.double()) / lengths
    return means[sample_index].to(values.dtype)


def _finite_by_sample(values: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    bad = tokens.sample_index[~values.isfinite()]
    return bad.bincount(minlength=_num_samples(tokens)) == 0


def _num_samples(tokens: Tokens) -> int:
    return int(tokens.sample_index[-1]) + 1


def _num_tokens(group: ScoredGroup) -> int:
    return sum(len(sample.trace.token_ids) for sample in group.group.samples)
