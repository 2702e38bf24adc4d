"""Rewards and advantages of tiny groups, worked out by hand."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from learner.advantages import kl_penalty, overlong_penalty, shaped_rewards, step_advantages
from learner.loss_config import LossConfig
from records.samples import ScoredGroup
from tests.fakes import make_group, make_prompt, make_scored

LOG_2 = math.log(2.0)
ONE_GROUP = [np.array([1.0, 2.0, 3.0, 6.0])]
# Means 2 and 3; deviations -1, 1 and 3, -3.
TWO_GROUPS = [np.array([1.0, 3.0]), np.array([6.0, 0.0])]


def test_rewards_are_centred_and_scaled_by_the_standard_deviation_of_the_group() -> None:
    # Mean (1 + 2 + 3 + 6) / 4 = 3; deviations -2, -1, 0, 3; variance (4 + 1 + 0 + 9) / 4 = 3.5; std 1.870829.
    (advantages,) = step_advantages(ONE_GROUP, "group_mean", "group_std")
    np.testing.assert_allclose(advantages, np.array([-2, -1, 0, 3]) / 1.870829, atol=2e-6)
    assert advantages.dtype == np.float64


def test_every_group_has_its_own_standard_deviation() -> None:
    # Stds 1 and 3.
    first, second = step_advantages(TWO_GROUPS, "group_mean", "group_std")
    np.testing.assert_allclose(first, [-1, 1], atol=2e-6)
    np.testing.assert_allclose(second, [1, -1], atol=2e-6)


def test_without_scaling_rewards_are_only_centred() -> None:
    (advantages,) = step_advantages(ONE_GROUP, "group_mean", "none")
    np.testing.assert_array_equal(advantages, [-2, -1, 0, 3])


def test_batch_std_is_of_all_centred_rewards_of_the_step() -> None:
    # Centred: -1, 1, 3, -3; variance (1 + 1 + 9 + 9) / 4 = 5; std 2.236068: group means 2 and 3 play no part.
    first, second = step_advantages(TWO_GROUPS, "group_mean", "batch_std")
    np.testing.assert_allclose(first, [-1 / 2.236068, 1 / 2.236068], atol=2e-6)
    np.testing.assert_allclose(second, [3 / 2.236068, -3 / 2.236068], atol=2e-6)


def test_leave_one_out_compares_with_the_mean_of_the_others() -> None:
    # 1 - 11/3, 2 - 10/3, 3 - 9/3, 6 - 6/3.
    (advantages,) = step_advantages(ONE_GROUP, "leave_one_out", "none")
    np.testing.assert_allclose(advantages, [-8 / 3, -4 / 3, 0, 4], rtol=1e-12)


@pytest.mark.parametrize(("scaling", "std"), [("group_std", 3.0), ("batch_std", 2.236068)])
def test_the_baseline_does_not_change_what_advantages_are_divided_by(scaling: str, std: float) -> None:
    # The second group: 6 - 0 = 6 and 0 - 6 = -6, over the stds above.
    _, second = step_advantages(TWO_GROUPS, "leave_one_out", scaling)
    np.testing.assert_allclose(second, [6 / std, -6 / std], atol=4e-6)


@pytest.mark.parametrize("scaling", ["group_std", "batch_std"])
def test_a_millionth_is_added_to_the_standard_deviation(scaling: str) -> None:
    # Std 1e-6: 1e-6 / (1e-6 + 1e-6).
    (advantages,) = step_advantages([np.array([-1e-6, 1e-6])], "group_mean", scaling)
    np.testing.assert_allclose(advantages, [-0.5, 0.5], rtol=1e-9)


def test_a_group_whose_rule_tells_nothing_apart_keeps_its_unit() -> None:
    # Two groups with the deviations -0.01 and 0.01, of which the first has them from its shaping alone.
    rewards = [np.array([4.99, 5.01]), np.array([0.99, 1.01])]
    shaping, rule = step_advantages(rewards, "group_mean", "group_std", [False, True])
    np.testing.assert_allclose(shaping, [-0.01, 0.01], atol=1e-12)
    np.testing.assert_allclose(rule, [-1, 1], atol=2e-4)
    (shaping,) = step_advantages(rewards[:1], "leave_one_out", "group_std", [False])
    np.testing.assert_allclose(shaping, [-0.02, 0.02], atol=1e-12)


@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
@pytest.mark.parametrize("scaling", ["group_std", "batch_std", "none"])
@pytest.mark.parametrize("rewards", [[0.1] * 7, [-3.0] * 2, [5.0]])
def test_equal_rewards_give_zero_advantage(rewards: list[float], scaling: str, baseline: str) -> None:
    equal, other = step_advantages([np.array(rewards), TWO_GROUPS[0]], baseline, scaling)
    np.testing.assert_array_equal(equal, np.zeros(len(rewards)))
    assert other.all()


def test_a_step_whose_groups_all_have_equal_rewards_has_zero_advantages() -> None:
    first, second = step_advantages([np.array([0.1] * 3), np.array([2.0])], "group_mean", "batch_std")
    assert (first.tolist(), second.tolist()) == ([0, 0, 0], [0])


@pytest.mark.parametrize("scaling", ["group_std", "batch_std", "none"])
def test_a_step_without_groups_has_no_advantages(scaling: str) -> None:
    assert step_advantages([], "group_mean", scaling) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_reward_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not all finite"):
        step_advantages([np.array([1.0, 2.0]), np.array([1.0, bad])], "group_mean", "group_std")


def test_an_answer_is_punished_in_a_line_once_it_enters_the_buffer() -> None:
    # At most 20 tokens, the last 8 are the buffer: 12 tokens are free; then (12 - length) / 8.
    lengths = np.array([1, 12, 13, 16, 20])
    np.testing.assert_array_equal(overlong_penalty(lengths, 20, 8), [0, 0, -0.125, -0.5, -1])


def test_an_answer_that_is_too_long_is_punished_with_one() -> None:
    np.testing.assert_array_equal(overlong_penalty(np.array([25, 1000]), 20, 8), [-1, -1])


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # d = sampler - reference = log 2, -log 2, log 4.
        ("k1", 2 * LOG_2),
        ("k2", (LOG_2**2 + LOG_2**2 + 4 * LOG_2**2) / 2),
        # exp(-d) = 1/2, 2, 1/4; less 1, plus d: -1/2 + log 2, 1 - log 2, -3/4 + 2 log 2.
        ("k3", -0.25 + 2 * LOG_2),
    ],
)
def test_kl_of_an_answer_is_summed_over_its_tokens(estimator: str, expected: float) -> None:
    sampler = np.array([-1.0, -2.0, -1.0], dtype=np.float32)
    reference = np.array([-1.0 - LOG_2, -2.0 + LOG_2, -1.0 - 2 * LOG_2], dtype=np.float32)
    assert kl_penalty(sampler, reference, estimator) == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def scored() -> ScoredGroup:
    """Rewards 1 and 3; two answers of 2 tokens, all of log-prob -0.5."""
    return make_scored(make_group(make_prompt(), version=0), [1.0, 3.0])


REFERENCE = [np.array([-0.5, -0.5 - LOG_2]), np.array([-0.5 + LOG_2, -0.5 + LOG_2])]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [1, 3]),
        # At most 3 tokens, of which 2 are the buffer: (3 - 2 - 2) / 2 = -1/2 for both.
        ({"overlong_buffer_tokens": 2}, [0.5, 2.5]),
        # d = 0, log 2 and -log 2, -log 2.
        ({"kl_weight": 0.1, "kl_in": "reward", "kl_estimator": "k1"}, [1 - 0.1 * LOG_2, 3 + 0.2 * LOG_2]),
        ({"kl_weight": 0.1, "kl_in": "reward", "kl_estimator": "k2"}, [1 - 0.05 * LOG_2**2, 3 - 0.1 * LOG_2**2]),
        # 0 + (1/2 - 1 + log 2) and 2 (2 - 1 - log 2).
        (
            {"kl_weight": 0.1, "kl_in": "reward", "kl_estimator": "k3"},
            [1 - 0.1 * (LOG_2 - 0.5), 3 - 0.1 * (2 - 2 * LOG_2)],
        ),
        # In the loss it is not in the reward.
        ({"kl_weight": 0.1, "kl_in": "loss"}, [1, 3]),
        (
            {"kl_weight": 0.1, "kl_in": "reward", "kl_estimator": "k1", "overlong_buffer_tokens": 2},
            [0.5 - 0.1 * LOG_2, 2.5 + 0.2 * LOG_2],
        ),
    ],
)
def test_rewards_are_shaped_as_configured(scored: ScoredGroup, given: dict[str, Any], expected: list[float]) -> None:
    shaped = shaped_rewards(scored, LossConfig.model_validate(given), 3, REFERENCE)
    np.testing.assert_allclose(shaped, expected, atol=1e-7)


def test_each_answer_has_its_own_length(scored: ScoredGroup) -> None:
    # 2 and 1 tokens of at most 2, all of them the buffer: (2 - 2 - 2) / 2 = -1 and (2 - 2 - 1) / 2 = -1/2.
    first, second = scored.group.samples
    trace = second.trace
    short = replace(
        trace,
        token_ids=trace.token_ids[:1],
        logprobs=trace.logprobs[:1],
        versions=(replace(trace.versions[0], end=1),),
    )
    group = replace(scored, group=replace(scored.group, samples=(first, replace(second, trace=short))))
    config = LossConfig(overlong_buffer_tokens=2)
    np.testing.assert_array_equal(shaped_rewards(group, config, 2, None), [0, 2.5])


def test_a_buffer_of_one_token_punishes_the_longest_answers(scored: ScoredGroup) -> None:
    # 2 tokens of at most 2, the last is the buffer: (2 - 1 - 2) / 1 = -1.
    shaped = shaped_rewards(scored, LossConfig(overlong_buffer_tokens=1), 2, None)
    np.testing.assert_array_equal(shaped, [0, 2])
