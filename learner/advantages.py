"""Rewards of a group to advantages. Pure."""

import numpy as np

_EPSILON = 1e-6


def group_advantages(rewards: np.ndarray, scaling: str) -> np.ndarray:
    """Centre and scale the rewards of one group.

    *rewards* `[G]`, any real unit. Returns `[G]` float64 with mean 0; all zeros when the rewards are equal, and so for
    a group of one. *scaling* `group_std` divides by the standard deviation over the group (of G, not G - 1), plus 1e-6;
    `none` only centres. Raises ValueError if a reward is not finite. GRPO, DeepSeekMath (arXiv 2402.03300), outcome
    supervision; `none` is Dr.GRPO's (arXiv 2503.20783).
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    if not np.isfinite(rewards).all():
        raise ValueError(f"the rewards {rewards.tolist()} are not all finite; a reward rule must return finite numbers")
    if np.ptp(rewards) == 0:
        return np.zeros_like(rewards)  # exact: the mean of equal numbers may differ from them by rounding
    centred = rewards - rewards.mean()
    if scaling == "none":
        return centred
    assert scaling == "group_std", scaling
    return centred / (rewards.std() + _EPSILON)
