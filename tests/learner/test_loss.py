"""The loss of two tiny groups, worked out by hand."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from learner.config import LearnerConfig
from learner.loss import SUMS, grpo_loss, join_tokens, spoil_if_not_finite, token_terms

LOG_2 = math.log(2.0)
CPU = torch.device("cpu")


@pytest.fixture
def tokens(make_group: Callable[..., Any]) -> Any:
    """Group 1: rewards 1 and 3, answers of 2 tokens and 1 token. Group 2: rewards 5 and 5, one token each.

    Advantages: group 1, mean 2, std 1: -1, +1 (short of 1e-6); group 2: 0, 0.
    Weights 1 / (P * G * La), P = 2, G = 2: group 1: 1/8, 1/8 | 1/4; group 2: 1/4 | 1/4. They sum to 1.
    """
    groups = [make_group(0, [2, 1], rewards=[1.0, 3.0]), make_group(1, [1, 1], rewards=[5.0, 5.0])]
    return join_tokens([token_terms(group, len(groups), "group_std") for group in groups], CPU)


def test_token_weights_and_advantages(tokens: Any) -> None:
    torch.testing.assert_close(tokens.weights, torch.tensor([1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 4]))
    torch.testing.assert_close(tokens.advantages, torch.tensor([-1.0, -1, 1, 0, 0]), atol=2e-6, rtol=0)


def test_clipped_surrogate_and_its_gradient(tokens: Any) -> None:
    # Ratios 0.5, 2, 2, 2, 1; clip to [0.8, 1.3].
    # 1: A = -1: min(-0.5, -0.8) = -0.8, clipped: no gradient.   2: A = -1: min(-2, -1.3) = -2, not clipped.
    # 3: A = +1: min(2, 1.3) = 1.3, clipped: no gradient.        4, 5: A = 0.
    # Loss = 0.8/8 + 2/8 - 1.3/4 = 0.1 + 0.25 - 0.325 = 0.025. Gradient (d ratio / d log-prob = ratio): token 2: 2/8.
    config = LearnerConfig(clip_low=0.2, clip_high=0.3)
    log_ratio = torch.tensor([-LOG_2, LOG_2, LOG_2, LOG_2, 0.0])
    logprobs = (tokens.sampler_logprobs + log_ratio).requires_grad_()
    result = grpo_loss(logprobs, tokens, config)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(0.025, abs=2e-6)
    torch.testing.assert_close(logprobs.grad, torch.tensor([0, 0.25, 0, 0, 0]), atol=2e-6, rtol=0)
    sums = dict(zip(SUMS, result.sums.tolist(), strict=True))
    assert sums["loss"] == pytest.approx(0.025, abs=2e-6)
    assert sums["ratio"] == pytest.approx(0.5 / 8 + 2 / 8 + 2 / 4 + 2 / 4 + 1 / 4, abs=1e-5)  # 1.5625
    assert sums["clip_fraction"] == pytest.approx(1 / 8 + 1 / 4, abs=1e-6)
    assert sums["kl"] == 0
    assert sums["entropy"] == pytest.approx(-(logprobs * tokens.weights).sum().item(), abs=1e-5)
    assert float(result.max_abs_log_ratio) == pytest.approx(LOG_2, abs=1e-5)


def test_kl_to_the_reference_policy(tokens: Any) -> None:
    # On policy, so the surrogate is -(sum of weight * A) = -(-1/8 - 1/8 + 1/4) = 0.
    # Token 2: the reference is twice as likely: k3 = 2 - log 2 - 1 = 1 - log 2 = 0.306853; d k3 / d logp = 1 - 2 = -1.
    # Token 4: it is half as likely: k3 = 0.5 + log 2 - 1 = 0.193147; d k3 / d logp = 1 - 0.5 = 0.5.
    # KL = 0.306853/8 + 0.193147/4 = 0.086643; loss = 0.1 * KL.
    # Gradient: -A * weight (1/8, 1/8, -1/4, 0, 0), plus 0.1 * (0, -1/8, 0, 0.5/4, 0).
    config = LearnerConfig(kl_weight=0.1)
    logprobs = tokens.sampler_logprobs.clone().requires_grad_()
    reference = tokens.sampler_logprobs + torch.tensor([0.0, LOG_2, 0.0, -LOG_2, 0.0])
    result = grpo_loss(logprobs, tokens, config, reference)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(0.0086643, abs=2e-6)
    assert float(result.sums[SUMS.index("kl")]) == pytest.approx(0.086643, abs=2e-6)
    expected = torch.tensor([0.125, 0.1125, -0.25, 0.0125, 0])
    torch.testing.assert_close(logprobs.grad, expected, atol=2e-6, rtol=0)


def test_parts_of_a_step_add_up_to_the_whole(make_group: Callable[..., Any]) -> None:
    groups = [make_group(seed, lengths) for seed, lengths in enumerate([[3, 1], [2, 2, 5], [4]])]
    terms = [token_terms(group, len(groups), "group_std") for group in groups]
    config = LearnerConfig()

    def sums(parts: list[Any]) -> torch.Tensor:
        tokens = join_tokens(parts, CPU)
        return grpo_loss(tokens.sampler_logprobs + 0.25, tokens, config).sums

    torch.testing.assert_close(sum(sums([part]) for part in terms), sums(terms))


def test_a_pass_that_only_fills_up_adds_nothing(make_group: Callable[..., Any]) -> None:
    tokens = join_tokens([token_terms(make_group(0, [3, 1]), 1, "group_std")], CPU, weight=0.0)
    result = grpo_loss(tokens.sampler_logprobs + 1.0, tokens, LearnerConfig())
    assert result.sums.tolist() == [0, 0, 0, 0, 0]
    assert result.loss.item() == 0
    assert float(result.max_abs_log_ratio) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_spoils_a_finite_gradient(bad: float) -> None:
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    spoil_if_not_finite((2 * logprobs).sum() + bad, logprobs).backward()
    assert logprobs.grad is not None
    assert logprobs.grad.isnan().all()


def test_a_finite_loss_keeps_its_gradient() -> None:
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    spoil_if_not_finite((logprobs**2).sum(), logprobs).backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-2.0, -4.0]
