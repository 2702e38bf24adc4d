"""Rewards to advantages. Pure.

P groups in a step, G samples in a group, La tokens in an answer.
"""

from collections.abc import Sequence

import numpy as np

from learner.loss_config import LossConfig
from records.samples import ScoredGroup

_EPSILON = 1e-6


def step_advantages(
    rewards: Sequence[np.ndarray], baseline: str, scaling: str, has_signal: Sequence[bool] | None = None
) -> list[np.ndarray]:
    """Centre and scale the rewards of a step.

    *rewards* P arrays `[G]`, any real unit. Returns P arrays `[G]` float64 with mean 0; exact zeros where a group's
    rewards are equal, and so for a group of one. Raises ValueError if a reward is not finite.

    *baseline* `group_mean` is GRPO's (arXiv 2402.03300, outcome supervision); `leave_one_out`, the mean of the others,
    RLOO's (arXiv 2402.14740): r_i - (sum - r_i) / (G - 1) = G / (G - 1) (r_i - mean). *scaling* divides by the standard
    deviation of rewards about their group's mean, plus 1e-6: `group_std` over the group (of G, not G - 1; GRPO),
    `batch_std` over all samples of the step (after REINFORCE++, arXiv 2501.03262); `none` is Dr.GRPO's (arXiv
    2503.20783).

    *has_signal* tells the groups in which the rule's own rewards differ, where *rewards* are shaped; by default all.
    `group_std` leaves the others in their unit: their spread is only that of the punishment and the KL, and divided by
    itself a KL of rounding noise would become advantages of full size.
    """
    deviations = [_deviations(np.asarray(group, dtype=np.float64)) for group in rewards]
    assert baseline in ("group_mean", "leave_one_out"), baseline
    assert scaling in ("group_std", "batch_std", "none"), scaling
    divisors = [1.0] * len(deviations)
    if scaling == "group_std":
        scaled = [True] * len(deviations) if has_signal is None else has_signal
        stds = [group.std() + _EPSILON for group in deviations]
        divisors = [std if is_scaled else 1.0 for std, is_scaled in zip(stds, scaled, strict=True)]
    elif scaling == "batch_std" and deviations:
        divisors = [np.concatenate(deviations).std() + _EPSILON] * len(deviations)
    if baseline == "leave_one_out":
        deviations = [group * len(group) / max(1, len(group) - 1) for group in deviations]
    return [group / divisor for group, divisor in zip(deviations, divisors, strict=True)]


def shaped_rewards(
    group: ScoredGroup, config: LossConfig, max_answer_tokens: int, reference: Sequence[np.ndarray] | None
) -> np.ndarray:
    """`[G]` float64: the group's rewards with the punishment of long answers and, if it is in the reward, the KL.

    *reference* G arrays `[La]`, the starting policy's log-probs; needed for the KL only.
    """
    traces = [sample.trace for sample in group.group.samples]
    rewards = group.rewards
    if config.overlong_buffer_tokens > 0:
        lengths = np.array([len(trace.token_ids) for trace in traces])
        rewards = rewards + overlong_penalty(lengths, max_answer_tokens, config.overlong_buffer_tokens)
    if config.kl_weight > 0 and config.kl_in == "reward":
        assert reference is not None, "the KL in the reward needs the starting policy's log-probs"
        pairs = zip(traces, reference, strict=True)
        kl = [kl_penalty(trace.logprobs, logprobs, config.kl_estimator) for trace, logprobs in pairs]
        rewards = rewards - config.kl_weight * np.array(kl)
    return rewards


def overlong_penalty(lengths: np.ndarray, max_answer_tokens: int, buffer_tokens: int) -> np.ndarray:
    """`[G]`: 0 up to *buffer_tokens* before *max_answer_tokens*, from there falling in a line to -1. *lengths* `[G]`.

    DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13).
    """
    return np.clip((max_answer_tokens - buffer_tokens - lengths) / buffer_tokens, -1.0, 0.0)


def kl_penalty(sampler_logprobs: np.ndarray, reference_logprobs: np.ndarray, estimator: str) -> float:
    """KL divergence of one answer's sampling policy from the reference, summed over its tokens; both `[La]`, nats.

    With d = sampler - reference: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d (Schulman, "Approximating KL Divergence",
    2020). In the reward an estimator acts by its value, so k1, being unbiased, is the usual choice; and the KL is that
    of the policy that sampled, the only one whose samples there are.
    """
    ahead = sampler_logprobs.astype(np.float64) - reference_logprobs
    by_name = {"k1": ahead, "k2": ahead**2 / 2, "k3": np.expm1(-ahead) + ahead}
    return float(by_name[estimator].sum())


def _deviations(rewards: np.ndarray) -> np.ndarray:
    if not np.isfinite(rewards).all():
        raise ValueError(f"the rewards {rewards.tolist()} are not all finite; a reward rule must return finite numbers")
    if np.ptp(rewards) == 0:
        return np.zeros_like(rewards)  # exact: the mean of equal numbers may differ from them by rounding
    return rewards - rewards.mean()
