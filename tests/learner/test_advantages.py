"""Advantages of one group, worked out by hand."""

import numpy as np
import pytest

from learner.advantages import group_advantages


def test_rewards_are_centred_and_scaled_by_the_standard_deviation_of_the_group() -> None:
    # Mean (1 + 2 + 3 + 6) / 4 = 3; deviations -2, -1, 0, 3; variance (4 + 1 + 0 + 9) / 4 = 3.5; std 1.870829.
    expected = np.array([-2, -1, 0, 3]) / 1.870829
    np.testing.assert_allclose(group_advantages(np.array([1.0, 2.0, 3.0, 6.0]), "group_std"), expected, atol=2e-6)


def test_without_scaling_rewards_are_only_centred() -> None:
    np.testing.assert_array_equal(group_advantages(np.array([1.0, 2.0, 3.0, 6.0]), "none"), [-2, -1, 0, 3])


@pytest.mark.parametrize("scaling", ["group_std", "none"])
@pytest.mark.parametrize("rewards", [[0.1] * 7, [-3.0] * 2, [5.0]])
def test_equal_rewards_give_zero_advantage(rewards: list[float], scaling: str) -> None:
    np.testing.assert_array_equal(group_advantages(np.array(rewards), scaling), np.zeros(len(rewards)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_reward_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not all finite"):
        group_advantages(np.array([1.0, bad]), "group_std")
