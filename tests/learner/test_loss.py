"""The losses of two tiny groups, worked out by hand.

Unless a test says otherwise, a step is the groups of `two_groups`: answers of 2 tokens and 1 token, rewards 1 and 3;
answers of 1 token each, rewards 6 and 0. At most 4 tokens an answer. The five tokens, in order:

    token                        1     2     3     4     5
    sample                       1     1     2     3     4
    learner's log-prob          -1    -2    -3    -1    -2
    ratio, learner to sampler   1/2    2     8    1/2   5/4
    advantage, group_std        -1    -1     1     1    -1     (short of 1e-6)
    advantage, none             -1    -1     1     3    -3
    advantage, leave_one_out    -2    -2     2     6    -6
    weight, sample              1/8   1/8   1/4   1/4   1/4
"""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from learner.loss import (
    NLL_SUMS,
    SUMS,
    TokenLoss,
    Tokens,
    has_gradient,
    imitation_tokens,
    join_tokens,
    nll_loss,
    policy_loss,
    spoil_if_not_finite,
    step_tokens,
)
from learner.loss_config import LossConfig
from records.samples import PolicyVersion, Sample, SampleGroup, Score, ScoredGroup, Trace, VersionSpan
from tests.fakes import make_prompt

CPU = torch.device("cpu")
LOG_2 = math.log(2.0)
MAX_ANSWER_TOKENS = 4
LOGPROBS = [-1.0, -2.0, -3.0, -1.0, -2.0]
SAMPLER = [-1 + LOG_2, -2 - LOG_2, -3 - 3 * LOG_2, -1 + LOG_2, -2 - math.log(1.25)]
# The learner's log-prob less the reference's: log 2, 0, 0, -log 2, 0.
REFERENCE = [[np.array([-1 - LOG_2, -2.0]), np.array([-3.0])], [np.array([-1 + LOG_2]), np.array([-2.0])]]
ALGORITHMS = ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"]
DECOUPLED = {"proximal": "learner"}


def make_group(
    rewards: Sequence[float], logprobs: Sequence[Sequence[float] | np.ndarray], name: str = "0/basic/center"
) -> ScoredGroup:
    """One sample for each list of the sampler's log-probs."""
    prompt = make_prompt(name)
    samples = tuple(
        Sample(
            id=f"{name}#{index}",
            trace=Trace(
                prompt_token_ids=np.arange(3, dtype=np.int32),
                token_ids=np.arange(len(of_sample), dtype=np.int32),
                logprobs=np.array(of_sample, dtype=np.float32),
                versions=(VersionSpan(version=PolicyVersion(0), start=0, end=len(of_sample)),),
                finish="stop",
            ),
            text="",
        )
        for index, of_sample in enumerate(logprobs)
    )
    scores = tuple(Score(total=reward, parts={"all": reward}, judgement=None) for reward in rewards)
    return ScoredGroup(group=SampleGroup(prompt=prompt, samples=samples), scores=scores)


def two_groups(second_rewards: Sequence[float] = (6.0, 0.0), sampler: Sequence[float] = SAMPLER) -> list[ScoredGroup]:
    first = make_group([1.0, 3.0], [sampler[:2], sampler[2:3]])
    return [first, make_group(second_rewards, [sampler[3:4], sampler[4:]], "1/basic/center")]


def join(step: Sequence[Sequence[Tokens]]) -> Tokens:
    return join_tokens([part for parts in step for part in parts], CPU)


def solve(
    given: dict[str, Any],
    groups: Sequence[ScoredGroup] | None = None,
    reference: Sequence[Sequence[np.ndarray]] | None = None,
) -> tuple[TokenLoss, list[float]]:
    """The loss of a step in one pass, and its gradient by token."""
    config = LossConfig.model_validate(given)
    tokens = join(step_tokens(groups or two_groups(), config, MAX_ANSWER_TOKENS, reference))
    logprobs = torch.tensor(LOGPROBS, requires_grad=True)
    result = policy_loss(logprobs, tokens, config)
    result.loss.backward()
    assert logprobs.grad is not None
    return result, logprobs.grad.tolist()


def stats(result: TokenLoss) -> dict[str, float]:
    return dict(zip(SUMS, result.sums.tolist(), strict=True))


def close(value: Any) -> Any:
    return pytest.approx(value, abs=4e-6)


# The six algorithms.


def test_grpo() -> None:
    # Bounds 0.8 and 1.2. Token 1: A = -1, max(1/2, 0.8) = 0.8, clipped: no gradient. 2: A = -1, 2. 3: A = 1,
    # min(8, 1.2) = 1.2, clipped. 4: A = 1, 1/2. 5: A = -1, 5/4. d ratio / d log-prob = ratio.
    # Loss = 0.8/8 + 2/8 - 1.2/4 - 0.5/4 + 1.25/4 = 0.1 + 0.25 - 0.3 - 0.125 + 0.3125.
    result, gradient = solve({"algorithm": "grpo"})
    assert result.loss.item() == close(0.2375)
    assert gradient == close([0, 2 / 8, 0, -0.5 / 4, 1.25 / 4])


def test_without_a_lower_bound_no_ratio_is_clipped_below() -> None:
    # Token 1 counts 1/2, not 0.8.
    _, gradient = solve({"clip_low": 1.0})
    assert gradient == close([0.5 / 8, 2 / 8, 0, -0.5 / 4, 1.25 / 4])


def test_dr_grpo() -> None:
    # Advantages -1, -1, 1, 3, -3, every weight 1 / (2 * 2 * 4) = 1/16, ratios as in GRPO.
    # Loss = (0.8 + 2 - 1.2 - 3 * 0.5 + 3 * 1.25) / 16 = 3.85 / 16.
    result, gradient = solve({"algorithm": "dr_grpo"})
    assert result.loss.item() == close(3.85 / 16)
    assert gradient == close([0, 2 / 16, 0, -1.5 / 16, 3.75 / 16])


def test_dapo() -> None:
    # Every weight 1/5, upper bound 1.28. Loss = (0.8 + 2 - 1.28 - 0.5 + 1.25) / 5 = 2.27 / 5.
    result, gradient = solve({"algorithm": "dapo"})
    assert result.loss.item() == close(2.27 / 5)
    assert gradient == close([0, 2 / 5, 0, -0.5 / 5, 1.25 / 5])


def test_gspo() -> None:
    # Ratios of samples: sqrt(1/2 * 2) = 1, A = -1; 8, A = 1, clipped at 1.04; 1/2, A = 1; 5/4, A = -1.
    # Loss = (1 - 1.04 - 0.5 + 1.25) / 4 = 0.1775. d s / d log-prob of a token = s / La: 1/4 * 1/2 for tokens 1, 2.
    result, gradient = solve({"algorithm": "gspo"})
    assert result.loss.item() == close(0.1775)
    assert gradient == close([1 / 8, 1 / 8, 0, -0.5 / 4, 1.25 / 4])


def test_gspo_clips_below_too() -> None:
    # As the sampler's log-probs, with token 4 (A = 1) and 5 (A = -1) at ratios 1.03 and 0.98, both inside; then at
    # 1.05 and 0.96, both outside and clipped at 1.04 and 0.97. A GRPO clip would act on none.
    for ratios, expected, slopes in (
        ([1.03, 0.98], [1.03, 0.98], [-1.03 / 4, 0.98 / 4]),
        ([1.05, 0.96], [1.04, 0.97], [0, 0]),
    ):
        sampler = [*SAMPLER[:3], -1 - math.log(ratios[0]), -2 - math.log(ratios[1])]
        result, gradient = solve({"algorithm": "gspo"}, two_groups(sampler=sampler))
        assert result.loss.item() == close((1 - 1.04 - expected[0] + expected[1]) / 4)
        assert gradient[3:] == close(slopes)


def test_gspo_takes_the_geometric_mean_of_an_answers_ratios() -> None:
    # Ratios 1 and 4, A = -1: sqrt(4) = 2; halved between the two tokens.
    sampler = [-1, -2 - 2 * LOG_2, *SAMPLER[2:]]
    result, gradient = solve({"algorithm": "gspo"}, two_groups(sampler=sampler))
    assert result.loss.item() == close((2 - 1.04 - 0.5 + 1.25) / 4)
    assert gradient == close([2 / 8, 2 / 8, 0, -0.5 / 4, 1.25 / 4])


@pytest.mark.parametrize(("sampler_kl", "papers", "ours"), [(1e-4, 0.40, 0.0005), (1e-3, 0.45, 0.002)])
def test_gspo_keeps_the_answers_that_are_a_version_old(sampler_kl: float, papers: float, ours: float) -> None:
    # Made up as runs have it: answers of 40 tokens, log-ratios of standard deviation sqrt(2 KL) and mean -KL, so that
    # the mean log-ratio has one of 0.0022 or 0.0071. Of the answers outside, half are on the side that clips: by the
    # paper's widths, 87 % / 2 or 96 % / 2.
    rng = np.random.default_rng(0)
    answers, length = 5000, 40
    gap = rng.normal(-sampler_kl, math.sqrt(2 * sampler_kl), answers * length)
    advantages = np.repeat(rng.choice([-1.0, 1.0], answers), length)
    share = torch.full((answers * length,), 1 / (answers * length))
    tokens = Tokens(
        sampler_logprobs=torch.full_like(share, -1.0),
        advantages=torch.tensor(advantages, dtype=torch.float32),
        weights=share,
        counted=share,
        sample_index=torch.arange(answers).repeat_interleave(length),
    )
    logprobs = torch.tensor(gap - 1, dtype=torch.float32)
    narrow = LossConfig(algorithm="gspo", clip_low=3e-4, clip_high=4e-4)
    assert stats(policy_loss(logprobs, tokens, narrow))["clip_fraction"] > papers
    assert stats(policy_loss(logprobs, tokens, LossConfig(algorithm="gspo")))["clip_fraction"] < ours


def test_cispo() -> None:
    # Every weight 1/5; ratios bounded by 5 and not from below: 1/2, 2, 5, 1/2, 5/4. Terms -bounded * A * log-prob:
    # -0.5, -4, 15, 0.5, -2.5: loss = 8.5 / 5. The bounded ratio has no gradient of its own: -bounded * A / 5.
    result, gradient = solve({"algorithm": "cispo"})
    assert result.loss.item() == close(1.7)
    assert gradient == close([0.5 / 5, 2 / 5, -5 / 5, -0.5 / 5, 1.25 / 5])


def test_cispo_with_a_lower_bound() -> None:
    # Bounds 0.8 and 5: tokens 1 and 4 count 0.8.
    _, gradient = solve({"algorithm": "cispo", "clip_low": 0.2})
    assert gradient == close([0.8 / 5, 2 / 5, -5 / 5, -0.8 / 5, 1.25 / 5])


def test_rloo() -> None:
    # Every weight 1/4, times 1/2, 2, 2 (not 8), 1/2, 5/4; terms -A * log-prob: -2, -4, 6, 6, -12.
    # Loss = (-1 - 8 + 12 + 3 - 15) / 4 = -9 / 4. Gradient -A times these weights.
    result, gradient = solve({"algorithm": "rloo"})
    assert result.loss.item() == close(-2.25)
    assert gradient == close([0.25, 1, -1, -0.75, 7.5 / 4])
    assert stats(result)["truncated_fraction"] == close(1 / 5)


def test_rloo_on_policy_is_the_papers() -> None:
    # Every weight 1/4; loss (-2 - 4 + 6 + 6 - 12) / 4, gradient -A / 4; and the same for any sampler, if it is taken
    # for the learner.
    result, gradient = solve({"algorithm": "rloo"}, two_groups(sampler=LOGPROBS))
    assert result.loss.item() == close(-1.5)
    assert gradient == close([0.5, 0.5, -0.5, -1.5, 1.5])
    _, gradient = solve({"algorithm": "rloo", "proximal": "sampler", "correction": "none"})
    assert gradient == close([0.5, 0.5, -0.5, -1.5, 1.5])


POLICY = np.array([0.5, 0.3, 0.2])
NEAR = np.array([0.3, 0.3, 0.4])  # ratios 5/3, 1, 1/2


def expected_gradient(given: dict[str, Any], sampler: np.ndarray) -> np.ndarray:
    """By logit of `POLICY`, of the mean over all groups of two one-token answers that *sampler* may draw.

    Token a has reward a^2.
    """
    logits = torch.tensor(np.log(POLICY), dtype=torch.float32, requires_grad=True)
    config = LossConfig.model_validate(given)
    for first in range(3):
        for second in range(3):
            drawn = [first, second]
            group = make_group([a**2 for a in drawn], [[math.log(sampler[a])] for a in drawn])
            tokens = join(step_tokens([group], config, MAX_ANSWER_TOKENS))
            loss = policy_loss(logits.log_softmax(-1)[drawn], tokens, config).loss
            (loss * float(sampler[first] * sampler[second])).backward()
    assert logits.grad is not None
    return logits.grad.numpy()


def test_rloo_expects_the_policys_own_gradient_of_samples_of_another() -> None:
    # The mean reward is sum p_a a^2 = 0.3 + 0.2 * 4 = 1.1, its gradient p_a (a^2 - 1.1). No ratio to NEAR is above 2.
    own = np.array([0.55, 0.03, -0.58])
    np.testing.assert_allclose(expected_gradient({"algorithm": "rloo"}, POLICY), own, atol=1e-6)
    np.testing.assert_allclose(expected_gradient({"algorithm": "rloo"}, NEAR), own, atol=1e-6)
    uncorrected = {"algorithm": "rloo", "proximal": "sampler", "correction": "none"}
    np.testing.assert_allclose(expected_gradient(uncorrected, POLICY), own, atol=1e-6)
    # Uncorrected, the drawing q takes the place of p: q_a (a^2 - sum q_a a^2), the sum being 0.3 + 0.4 * 4 = 1.9.
    np.testing.assert_allclose(expected_gradient(uncorrected, NEAR), [0.57, 0.27, -0.84], atol=1e-6)


# The bound of dual clip, for A < 0.


def test_beyond_the_bound_a_ratio_with_a_negative_advantage_counts_no_more() -> None:
    # GRPO with token 2 (A = -1) at ratio 4: it counts 3/8, not 4/8, and has no gradient. Clipped: tokens 1, 2 and 3.
    groups = two_groups(sampler=[SAMPLER[0], -2 - 2 * LOG_2, *SAMPLER[2:]])
    result, gradient = solve({}, groups)
    assert result.loss.item() == close(0.2375 + 1 / 8)
    assert gradient == close([0, 0, 0, -0.5 / 4, 1.25 / 4])
    assert stats(result)["clip_fraction"] == close(3 / 5)
    result, gradient = solve({"ratio_bound": 5.0}, groups)
    assert result.loss.item() == close(0.2375 + 2 / 8)
    assert gradient == close([0, 4 / 8, 0, -0.5 / 4, 1.25 / 4])


def test_an_answers_ratio_is_bounded_too() -> None:
    # GSPO with ratios 2 and 8, A = -1: sqrt(16) = 4, bounded at 3.
    sampler = [-1 - LOG_2, -2 - 3 * LOG_2, *SAMPLER[2:]]
    result, gradient = solve({"algorithm": "gspo"}, two_groups(sampler=sampler))
    assert result.loss.item() == close((3 - 1.04 - 0.5 + 1.25) / 4)
    assert gradient == close([0, 0, 0, -0.5 / 4, 1.25 / 4])


def test_the_bound_leaves_positive_advantages_alone() -> None:
    # Token 3 (A = 1) at ratio 8 with clip_high 9: not clipped by either.
    _, gradient = solve({"clip_high": 9.0})
    assert gradient == close([0, 2 / 8, -8 / 4, -0.5 / 4, 1.25 / 4])


def test_below_the_bound_it_changes_no_bit() -> None:
    # Against the objective without a bound, spelled out; ratios from 1/7 to 2.95.
    rng = np.random.default_rng(0)
    gap = torch.tensor(rng.uniform(-2, math.log(2.95), 4000), dtype=torch.float32)
    sampler = torch.tensor(rng.uniform(-4, -1, 4000), dtype=torch.float32)
    advantages = torch.tensor(rng.normal(size=4000), dtype=torch.float32)
    share = torch.full((4000,), 1 / 4000)
    tokens = Tokens(
        sampler_logprobs=sampler, advantages=advantages, weights=share, counted=share, sample_index=torch.arange(4000)
    )
    logprobs, plain = (sampler + gap).requires_grad_(), (sampler + gap).requires_grad_()
    loss = policy_loss(logprobs, tokens, LossConfig()).loss
    loss.backward()
    log_ratio = plain - sampler
    low, high = math.log1p(-0.2), math.log1p(0.2)
    limited = torch.where(advantages > 0, log_ratio.clamp(max=high), log_ratio.clamp(min=low))
    expected = (share * (-limited.exp() * advantages)).sum()
    expected.backward()
    assert torch.equal(loss, expected)
    assert logprobs.grad is not None
    assert plain.grad is not None
    assert torch.equal(logprobs.grad, plain.grad)


# Weights and advantages.


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("sample", [1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 4]),
        ("token", [1 / 5] * 5),
        ("constant", [1 / 16] * 5),
        ("sum", [1 / 4] * 5),
    ],
)
def test_token_weights(weighting: str, expected: list[float]) -> None:
    config = LossConfig.model_validate({"weighting": weighting})
    tokens = join(step_tokens(two_groups(), config, MAX_ANSWER_TOKENS))
    assert tokens.weights.tolist() == close(expected)
    assert tokens.counted.tolist() == close([1 / 5] * 5)


def test_batch_std_advantages_reach_the_tokens() -> None:
    # Centred rewards -1, 1, 3, -3: std sqrt(20 / 4) = 2.236068.
    tokens = join(step_tokens(two_groups(), LossConfig(advantage_scaling="batch_std"), MAX_ANSWER_TOKENS))
    assert tokens.advantages.tolist() == close([x / 2.236068 for x in (-1, -1, 1, 3, -3)])


def test_tokens_know_their_sample_and_the_sampler() -> None:
    step = step_tokens(two_groups(), LossConfig(), MAX_ANSWER_TOKENS, REFERENCE)
    assert [[len(part.weights) for part in parts] for parts in step] == [[2, 1], [1, 1]]
    tokens = join(step)
    assert tokens.sample_index.tolist() == [0, 0, 1, 2, 3]
    assert tokens.sampler_logprobs.tolist() == close(SAMPLER)
    assert tokens.reference_logprobs is not None
    assert tokens.reference_logprobs.tolist() == close([-1 - LOG_2, -2, -3, -1 + LOG_2, -2])
    assert {field.name: getattr(tokens, field.name).dtype for field in fields(Tokens)} == {
        "sampler_logprobs": torch.float32,
        "advantages": torch.float32,
        "weights": torch.float32,
        "counted": torch.float32,
        "sample_index": torch.int64,
        "reference_logprobs": torch.float32,
    }


def test_joined_tokens_can_be_joined_again() -> None:
    step = step_tokens(two_groups(), LossConfig(), MAX_ANSWER_TOKENS)
    tokens = join_tokens([join_tokens(parts, CPU) for parts in step], CPU)
    assert tokens.sample_index.tolist() == [0, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("given", "weights"), [({}, [1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 4]), ({"weighting": "token"}, [1 / 5] * 5)]
)
def test_equal_groups_count_in_the_weights_but_not_in_the_statistics(
    given: dict[str, Any], weights: list[float]
) -> None:
    config = LossConfig.model_validate(given)
    step = step_tokens(two_groups(second_rewards=(6, 6)), config, MAX_ANSWER_TOKENS)
    assert join(step).weights.tolist() == close(weights)
    assert join(step).counted.tolist() == close([1 / 3, 1 / 3, 1 / 3, 0, 0])
    assert [has_gradient(parts, config) for parts in step] == [True, False]


def test_equal_groups_that_are_left_out_do_not_count() -> None:
    # DAPO with rewards 6 and 6: three tokens are left, (0.8 + 2 - 1.28) / 3. Counted, it were 1.52 / 5.
    groups = two_groups(second_rewards=(6, 6))
    result, gradient = solve({"algorithm": "dapo"}, groups)
    assert result.loss.item() == close(1.52 / 3)
    assert gradient == close([0, 2 / 3, 0, 0, 0])
    result, _ = solve({"algorithm": "dapo", "equal_groups": "count"}, groups)
    assert result.loss.item() == close(1.52 / 5)


@pytest.mark.parametrize("scaling", ["group_std", "batch_std", "none"])
@pytest.mark.parametrize("weighting", ["sample", "token", "constant", "sum"])
def test_a_step_is_what_it_were_without_the_groups_left_out(weighting: str, scaling: str) -> None:
    given = {"weighting": weighting, "advantage_scaling": scaling, "equal_groups": "leave_out"}
    config = LossConfig.model_validate(given)
    equal = make_group([2.0, 2.0], [[-1.0], [-1.0, -2.0]], "2/basic/center")
    (left_out, *others) = step_tokens([equal, *two_groups()], config, MAX_ANSWER_TOKENS)
    alone = step_tokens(two_groups(), config, MAX_ANSWER_TOKENS)
    for field in ("weights", "advantages", "counted"):
        assert getattr(join(others), field).tolist() == getattr(join(alone), field).tolist()
        assert not getattr(join([left_out]), field).any()


def test_left_out_groups_have_no_gradient_even_with_the_kl_in_the_loss() -> None:
    config = LossConfig(equal_groups="leave_out", kl_weight=0.1)
    step = step_tokens(two_groups(second_rewards=(6, 6)), config, MAX_ANSWER_TOKENS, REFERENCE)
    assert [has_gradient(parts, config) for parts in step] == [True, False]
    _, gradient = solve(config.model_dump(), two_groups(second_rewards=(6, 6)), REFERENCE)
    assert gradient[3:] == [0, 0]


@pytest.mark.parametrize("equal_groups", ["count", "leave_out"])
def test_a_step_of_equal_groups_only_has_no_gradient(equal_groups: str) -> None:
    groups = [make_group([6.0, 6.0], [SAMPLER[:2], SAMPLER[2:3]]), two_groups(second_rewards=(6, 6))[1]]
    for weighting in ("sample", "token", "constant", "sum"):
        result, gradient = solve({"equal_groups": equal_groups, "weighting": weighting}, groups)
        assert gradient == [0] * 5
        assert set(stats(result).values()) == {0.0}


def test_equal_groups_with_the_kl_in_the_loss_have_a_gradient_and_are_counted() -> None:
    config = LossConfig(kl_weight=0.1)
    step = step_tokens(two_groups(second_rewards=(6, 6)), config, MAX_ANSWER_TOKENS, REFERENCE)
    assert [has_gradient(parts, config) for parts in step] == [True, True]
    assert join(step).counted.tolist() == close([1 / 5] * 5)


@pytest.mark.parametrize("scaling", ["group_std", "none"])
def test_the_overlong_punishment_of_equal_rewards_counts_as_it_is(scaling: str) -> None:
    # The last 3 of 4 tokens are the buffer: answers of 2 and 1 tokens lose 1/3 and 0: advantages -1/6 and 1/6, as one
    # reward in six; divided by their own spread they would be -1 and 1, as large as those of right and wrong.
    groups = [make_group([6.0, 6.0], [SAMPLER[:2], SAMPLER[2:3]])]
    config = LossConfig.model_validate({"overlong_buffer_tokens": 3, "advantage_scaling": scaling})
    step = step_tokens(groups, config, MAX_ANSWER_TOKENS)
    assert join(step).advantages.tolist() == close([-1 / 6, -1 / 6, 1 / 6])
    assert has_gradient(step[0], config)


@pytest.mark.parametrize("shaping", [{"overlong_buffer_tokens": 3}, {"kl_weight": 0.1, "kl_in": "reward"}], ids=str)
def test_what_is_left_out_is_decided_by_the_rules_rewards(shaping: dict[str, Any]) -> None:
    groups = [make_group([6.0, 6.0], [SAMPLER[:2], SAMPLER[2:3]]), two_groups()[1]]
    config = LossConfig.model_validate({"equal_groups": "leave_out"} | shaping)
    step = step_tokens(groups, config, MAX_ANSWER_TOKENS, REFERENCE)
    assert [has_gradient(parts, config) for parts in step] == [False, True]
    assert join(step).weights.tolist() == close([0, 0, 0, 1 / 2, 1 / 2])


def test_noise_of_the_kl_in_the_reward_stays_small() -> None:
    # Equal rewards; sampler and reference differ by 1e-3 at one token: advantages -+0.1 * 1e-3 / 2, not -+1.
    group = make_group([5.0, 5.0], [[-1.0], [-2.0]])
    config = LossConfig(kl_weight=0.1, kl_in="reward", kl_estimator="k1")
    step = step_tokens([group], config, MAX_ANSWER_TOKENS, [[np.array([-1.001]), np.array([-2.0])]])
    assert join(step).advantages.tolist() == pytest.approx([-5e-5, 5e-5], abs=1e-7)


def test_equal_rewards_with_equal_kl_in_the_reward_have_no_gradient() -> None:
    # The reference is the sampler, so that nothing tells the samples apart, and there is no KL in the loss.
    config = LossConfig(algorithm="rloo", kl_weight=0.1)
    groups = two_groups(second_rewards=(6, 6))
    reference = [[sample.trace.logprobs for sample in group.group.samples] for group in groups]
    step = step_tokens(groups, config, MAX_ANSWER_TOKENS, reference)
    assert [has_gradient(parts, config) for parts in step] == [True, False]


def test_kl_in_the_reward_changes_the_advantages() -> None:
    # k1, sampler less reference: (-1 + log 2) - (-1 - log 2) + (-2 - log 2) - (-2) = log 2; -3 log 2; 0; -log 1.25.
    # Rewards 1 - 0.1 log 2 and 3 + 0.3 log 2; 6 and 0.1 log 1.25. Two in a group: A = r - the other's r.
    config = LossConfig(algorithm="rloo", kl_weight=0.1)
    tokens = join(step_tokens(two_groups(), config, MAX_ANSWER_TOKENS, REFERENCE))
    first, second = 2 + 0.4 * LOG_2, 6 - 0.1 * math.log(1.25)
    assert tokens.advantages.tolist() == close([-first, -first, first, second, -second])
    given = {"algorithm": "rloo", "kl_weight": 0.1, "proximal": "sampler", "correction": "none"}
    _, gradient = solve(given, reference=REFERENCE)
    assert gradient == close([first / 4, first / 4, -first / 4, -second / 4, second / 4])  # no KL in the loss


# The KL in the loss, on top of GRPO's 0.2375 and its gradient (0, 0.25, 0, -0.125, 0.3125).


def test_k3_in_the_loss() -> None:
    # d = log 2 at token 1: 1/2 - 1 + log 2 = 0.193147, derivative 1 - 1/2. -log 2 at token 4: 2 - 1 - log 2 = 0.306853,
    # derivative 1 - 2. Loss + 0.1 * (0.193147 / 8 + 0.306853 / 4) = + 0.0100857.
    result, gradient = solve({"kl_weight": 0.1}, reference=REFERENCE)
    assert result.loss.item() == close(0.2375 + 0.0100857)
    assert gradient == close([0.1 * 0.5 / 8, 0.25, 0, -0.125 - 0.1 / 4, 0.3125])
    assert stats(result)["kl"] == close((0.193147 + 0.306853) / 5)
    assert stats(result)["loss"] == close(0.2475857)


def test_k2_in_the_loss() -> None:
    # d^2 / 2 = 0.240227 at tokens 1 and 4, derivatives log 2 and -log 2. Loss + 0.1 * 0.240227 * (1/8 + 1/4).
    result, gradient = solve({"kl_weight": 0.1, "kl_estimator": "k2"}, reference=REFERENCE)
    assert result.loss.item() == close(0.2375 + 0.0090085)
    assert gradient == close([0.1 * 0.693147 / 8, 0.25, 0, -0.125 - 0.1 * 0.693147 / 4, 0.3125])
    assert stats(result)["kl"] == close(2 * 0.240227 / 5)


def test_without_a_weight_the_kl_is_measured_only() -> None:
    # k1: d = log 2, 0, 0, -2 log 2, 0, with another reference at token 4.
    reference = [REFERENCE[0], [np.array([-1 + 2 * LOG_2]), REFERENCE[1][1]]]
    result, gradient = solve({"kl_estimator": "k1"}, reference=reference)
    assert result.loss.item() == close(0.2375)
    assert gradient == close([0, 0.25, 0, -0.125, 0.3125])
    assert stats(result)["kl"] == close(-LOG_2 / 5)


def test_a_kl_without_reference_log_probs_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="starting policy"):
        step_tokens(two_groups(), LossConfig(kl_weight=0.1), MAX_ANSWER_TOKENS)


def test_a_group_has_a_gradient_if_any_of_its_samples_has() -> None:
    # The first reward is the mean.
    config = LossConfig()
    (parts,) = step_tokens([make_group([2.0, 1.0, 3.0], [[-1.0]] * 3)], config, MAX_ANSWER_TOKENS)
    assert parts[0].advantages.tolist() == [0]
    assert has_gradient(parts, config)


# The decoupled objective: ratio 1, and GRPO's terms -A times the behaviour weights 1/2, 2, 8, 1/2, 5/4.


def test_decoupled_objective() -> None:
    # Loss = 0.5/8 + 2/8 - 8/4 - 0.5/4 + 1.25/4 = -1.5; the gradient of each term is the term.
    result, gradient = solve(DECOUPLED)
    assert result.loss.item() == close(-1.5)
    assert gradient == close([0.5 / 8, 2 / 8, -8 / 4, -0.5 / 4, 1.25 / 4])
    assert stats(result)["clip_fraction"] == 0
    assert stats(result)["ratio"] == close(2.45)  # of learner to sampler all the same


def test_truncated_behaviour_weights() -> None:
    # Token 3 counts 4, not 8: loss -1.5 + 4/4. There is no lower bound.
    result, gradient = solve(DECOUPLED | {"correction": "truncate", "correction_low": 0.75, "correction_high": 4.0})
    assert result.loss.item() == close(-0.5)
    assert gradient == close([0.5 / 8, 2 / 8, -4 / 4, -0.5 / 4, 1.25 / 4])
    assert stats(result)["truncated_fraction"] == close(1 / 5)
    assert stats(result)["masked_token_fraction"] == 0


def test_masked_behaviour_weights() -> None:
    # Outside [0.75, 4] lie tokens 1, 3 and 4; the others keep their weights: loss 2/8 + 1.25/4.
    result, gradient = solve(DECOUPLED | {"correction": "mask", "correction_low": 0.75, "correction_high": 4.0})
    assert result.loss.item() == close(0.5625)
    assert gradient == close([0, 2 / 8, 0, 0, 1.25 / 4])
    assert stats(result)["masked_token_fraction"] == close(3 / 5)
    assert stats(result)["truncated_fraction"] == 0


def test_what_lies_on_a_bound_is_not_masked() -> None:
    # On policy every weight is 1, and so are both bounds.
    given = DECOUPLED | {"correction": "mask", "correction_low": 1.0, "correction_high": 1.0}
    result, _ = solve(given, two_groups(sampler=LOGPROBS))
    assert stats(result)["masked_token_fraction"] == 0
    assert stats(result)["ratio"] == close(1)


def test_a_masked_token_has_no_gradient_through_its_sequence() -> None:
    # GSPO, ratio 1 everywhere: terms -A * weight, token 1 masked by 0.75: 2/8 is left of its sample.
    masked = {"algorithm": "gspo", "correction": "mask", "correction_low": 0.75, "correction_high": 4.0}
    result, gradient = solve(DECOUPLED | masked)
    assert result.loss.item() == close(0.5625)
    assert gradient == close([0, 2 / 8, 0, 0, 1.25 / 4])


@pytest.mark.parametrize("algorithm", ["cispo", "rloo"])
def test_behaviour_weights_multiply_every_objective(algorithm: str) -> None:
    # Gradient -A * weight * w: CISPO A = -1, -1, 1, 1, -1 over 5; RLOO A = -2, -2, 2, 6, -6 over 4.
    expected = {"cispo": [0.5 / 5, 2 / 5, -8 / 5, -0.5 / 5, 1.25 / 5], "rloo": [1 / 4, 1, -4, -3 / 4, 7.5 / 4]}
    _, gradient = solve(DECOUPLED | {"algorithm": algorithm, "correction": "none"})
    assert gradient == close(expected[algorithm])


# Masks of whole samples, whose ratios are sqrt(1/2 * 2) = 1, 8, 1/2 and 5/4.


@pytest.mark.parametrize(
    ("bounds", "loss", "gradient", "masked"),
    [
        ({"sequence_mask_high": 4.0}, 0.2375 + 0.3, [0, 0.25, 0, -0.125, 0.3125], 1 / 5),
        ({"sequence_mask_low": 0.75}, 0.2375 + 0.125, [0, 0.25, 0, 0, 0.3125], 1 / 5),
        ({"sequence_mask_low": 0.75, "sequence_mask_high": 4.0}, 0.6625, [0, 0.25, 0, 0, 0.3125], 2 / 5),
        ({"sequence_mask_low": 0.1, "sequence_mask_high": 10.0}, 0.2375, [0, 0.25, 0, -0.125, 0.3125], 0),
    ],
)
def test_sample_masks(bounds: dict[str, float], loss: float, gradient: list[float], masked: float) -> None:
    # GRPO's terms 0.1, 0.25, -0.3, -0.125, 0.3125 without those of masked samples; the weights stay.
    result, found = solve(bounds)
    assert result.loss.item() == close(loss)
    assert found == close(gradient)
    assert stats(result)["masked_sample_fraction"] == close(masked)


def test_samples_are_masked_by_the_geometric_mean_of_their_ratios() -> None:
    # Sample 1 has ratios 1/2 and 2: 1, and stays; the arithmetic mean were 5/4. Samples 2 and 4, 8 and 5/4, go.
    result, gradient = solve({"sequence_mask_high": 1.2})
    assert gradient == close([0, 0.25, 0, -0.125, 0])
    assert stats(result)["masked_sample_fraction"] == close(2 / 5)


def test_the_share_of_masked_samples_is_that_of_their_tokens() -> None:
    # Sample 1, two tokens, ratios 2 and 2.
    sampler = [-1 - LOG_2, -2 - LOG_2, -3, -1, -2]
    result, _ = solve({"sequence_mask_high": 1.5}, two_groups(sampler=sampler))
    assert stats(result)["masked_sample_fraction"] == close(2 / 5)


def test_sample_masks_act_on_the_decoupled_objective_too() -> None:
    # Loss -1.5 without token 3's -8/4.
    result, gradient = solve(DECOUPLED | {"sequence_mask_high": 4.0})
    assert result.loss.item() == close(0.5)
    assert gradient == close([0.5 / 8, 2 / 8, 0, -0.5 / 4, 1.25 / 4])


def test_masks_leave_the_kl_alone() -> None:
    # Sample 3 is masked; its KL gradient, -0.1/4 by k3, stays.
    _, gradient = solve({"sequence_mask_low": 0.75, "kl_weight": 0.1}, reference=REFERENCE)
    assert gradient == close([0.1 * 0.5 / 8, 0.25, 0, -0.1 / 4, 0.3125])


# Statistics.


def test_statistics() -> None:
    # Means over five tokens. Ratio: (0.5 + 2 + 8 + 0.5 + 1.25) / 5 = 12.25 / 5. Clipped: tokens 1 and 3. Entropy:
    # (1 + 2 + 3 + 1 + 2) / 5. sampler_kl, r - 1 - log r: (7.25 - log(0.5 * 2 * 8 * 0.5 * 1.25)) / 5, log 5 = 1.609438.
    result, _ = solve({})
    assert stats(result) == close(
        {
            "loss": 0.2375,
            "ratio": 2.45,
            "clip_fraction": 2 / 5,
            "kl": 0,
            "entropy": 1.8,
            "sampler_kl": (7.25 - 1.609438) / 5,
            "truncated_fraction": 0,
            "masked_token_fraction": 0,
            "masked_sample_fraction": 0,
        }
    )
    assert result.sums.dtype == torch.float64
    assert not result.sums.requires_grad
    assert result.max_abs_log_ratio.item() == close(3 * LOG_2)
    assert result.finite_by_sample.tolist() == [True] * 4


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"algorithm": "gspo"}, 1 / 5),  # sample 2
        ({"algorithm": "cispo"}, 1 / 5),  # token 3, at 5
        ({"algorithm": "cispo", "clip_low": 0.2}, 3 / 5),  # and tokens 1 and 4, at 0.8
        ({"algorithm": "rloo"}, 0),
        ({"sequence_mask_high": 4.0}, 1 / 5),  # of tokens 1 and 3, token 3 is masked
    ],
)
def test_clip_fraction(given: dict[str, Any], expected: float) -> None:
    result, _ = solve(given)
    assert stats(result)["clip_fraction"] == close(expected)


def test_tokens_without_an_advantage_are_not_clipped() -> None:
    # Tokens 4 and 5 have ratios 8; equal rewards, but the KL counts them. Tokens 1 and 3 are clipped.
    sampler = [*SAMPLER[:3], -1 - 3 * LOG_2, -2 - 3 * LOG_2]
    result, _ = solve({"kl_weight": 0.1}, two_groups(second_rewards=(6, 6), sampler=sampler), REFERENCE)
    assert stats(result)["clip_fraction"] == close(2 / 5)


def test_the_largest_log_ratio_is_of_counted_tokens() -> None:
    # Token 5 has log-ratio -9, but its group has no gradient; token 3 has 3 log 2.
    sampler = [*SAMPLER[:4], 7.0]
    result, _ = solve({}, two_groups(second_rewards=(6, 6), sampler=sampler))
    assert result.max_abs_log_ratio.item() == close(3 * LOG_2)


def test_the_largest_log_ratio_may_be_downwards() -> None:
    result, _ = solve({}, two_groups(sampler=[*SAMPLER[:4], 7.0]))
    assert result.max_abs_log_ratio.item() == close(9)


# Splitting a step.

CONFIGS: list[dict[str, Any]] = [{"algorithm": algorithm} for algorithm in ALGORITHMS] + [
    {"algorithm": "grpo", "kl_weight": 0.1, "sequence_mask_low": 0.9, "sequence_mask_high": 1.1},
    {"algorithm": "gspo", "proximal": "learner", "correction": "mask", "correction_low": 0.9, "correction_high": 1.1},
    {"algorithm": "cispo", "proximal": "learner", "correction": "truncate", "correction_high": 1.0},
    {"algorithm": "rloo", "kl_weight": 0.1, "overlong_buffer_tokens": 3},
    {"algorithm": "dapo", "advantage_scaling": "batch_std", "kl_weight": 0.1},
]


@pytest.mark.parametrize("given", CONFIGS, ids=str)
@pytest.mark.parametrize("split", ["by group", "by sample", "backwards"])
def test_parts_of_a_step_add_up_to_the_whole(given: dict[str, Any], split: str) -> None:
    rng = np.random.default_rng(0)
    lengths = [[3, 1, 2], [4, 4, 1], [2, 5, 3]]
    logprobs = [[-2 - rng.random(length) for length in group] for group in lengths]
    reference = [[-2 - rng.random(length) for length in group] for group in lengths]
    rewards = [[1.0, 0.0, 2.0], [5.0, 5.0, 5.0], [0.5, 0.5, 3.0]]
    groups = [make_group(rewards[i], logprobs[i], f"{i}/basic/center") for i in range(3)]
    config = LossConfig.model_validate(given)
    step = step_tokens(groups, config, 5, reference)
    own = [[torch.tensor(-2 - rng.random(length), dtype=torch.float32) for length in group] for group in lengths]

    def run(places: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor, dict[tuple[int, int], torch.Tensor]]:
        leaves = {(group, sample): own[group][sample].clone().requires_grad_() for group, sample in places}
        tokens = join_tokens([step[group][sample] for group, sample in places], CPU)
        result = policy_loss(torch.cat(list(leaves.values())), tokens, config)
        result.loss.backward()
        return result.loss.detach(), result.sums, {place: leaf.grad for place, leaf in leaves.items()}  # type: ignore[misc]

    places = [(group, sample) for group in range(3) for sample in range(3)]
    passes = {
        "by group": [places[:3], places[3:6], places[6:]],
        "by sample": [[place] for place in places],
        "backwards": [places[:3:-1], places[3::-1]],
    }[split]
    loss, sums, gradient = run(places)
    parts = [run(some) for some in passes]
    torch.testing.assert_close(sum(part[0] for part in parts), loss)
    torch.testing.assert_close(sum(part[1] for part in parts), sums, rtol=1e-6, atol=1e-9)
    for _, _, of_part in parts:
        for place, leaf in of_part.items():
            torch.testing.assert_close(leaf, gradient[place])
    assert any(leaf.any() for leaf in gradient.values())


@pytest.mark.parametrize("given", CONFIGS, ids=str)
def test_groups_without_a_gradient_can_be_skipped(given: dict[str, Any]) -> None:
    config = LossConfig.model_validate(given)
    step = step_tokens(two_groups(second_rewards=(6, 6)), config, MAX_ANSWER_TOKENS, REFERENCE)
    for parts, logprobs in zip(step, (LOGPROBS[:3], LOGPROBS[3:]), strict=True):
        leaf = torch.tensor(logprobs, requires_grad=True)
        result = policy_loss(leaf, join([parts]), config)
        result.loss.backward()
        assert leaf.grad is not None
        if not has_gradient(parts, config):
            assert not leaf.grad.any()
            assert not result.sums.any()


@pytest.mark.parametrize("given", CONFIGS, ids=str)
def test_a_pass_that_only_fills_up_adds_nothing(given: dict[str, Any]) -> None:
    config = LossConfig.model_validate(given)
    parts = step_tokens(two_groups(), config, MAX_ANSWER_TOKENS, REFERENCE)[0]
    logprobs = torch.tensor(LOGPROBS[:3], requires_grad=True)
    result = policy_loss(logprobs, join_tokens(parts, CPU, weight=0.0), config)
    result.loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [0, 0, 0]
    assert not result.sums.any()
    assert result.loss.item() == 0
    assert result.max_abs_log_ratio.item() == 0


# What is not finite.

FAR = -200.0  # exp(199) is no float32


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("token", [1, 2])
def test_a_ratio_that_is_too_far_off_stops_the_step_and_names_its_sample(algorithm: str, token: int) -> None:
    # Token 2 of sample 1 has a negative advantage, token 3 of sample 2 a positive one: clipped, truncated, or neither.
    near, far = (two_groups(sampler=[*SAMPLER[:token], LOGPROBS[token] - by, *SAMPLER[token + 1 :]]) for by in (19, 21))
    result, gradient = solve({"algorithm": algorithm}, near)
    assert result.finite_by_sample.all()
    assert np.isfinite([result.loss.item(), *gradient]).all()
    result, _ = solve({"algorithm": algorithm}, far)
    assert result.finite_by_sample.tolist() == [token != 1, token != 2, True, True]
    assert result.loss.isinf()


def test_what_the_learner_takes_for_impossible_stops_nothing() -> None:
    # Token 4, A = 1, at ratio e^-50: it counts nothing.
    result, gradient = solve({}, two_groups(sampler=[*SAMPLER[:3], 49.0, SAMPLER[4]]))
    assert result.loss.item() == close(0.2375 + 0.125)
    assert gradient == close([0, 0.25, 0, 0, 0.3125])
    assert result.finite_by_sample.all()


@pytest.mark.parametrize("given", [{}, {"algorithm": "gspo"}, DECOUPLED])
def test_a_masked_ratio_too_large_for_a_float_changes_nothing(given: dict[str, Any]) -> None:
    sampler = [SAMPLER[0], SAMPLER[1], SAMPLER[2], SAMPLER[3], FAR]
    groups = two_groups(sampler=sampler)
    result, gradient = solve(given | {"sequence_mask_high": 20.0}, groups)
    expected, whole = solve(given | {"sequence_mask_high": 20.0})
    assert result.finite_by_sample.all()
    assert gradient == close([*whole[:4], 0])
    assert result.loss.item() == close(expected.loss.item() - 1.25 / 4)


def test_a_masked_token_too_large_for_a_float_changes_nothing() -> None:
    mask = {"correction": "mask", "correction_high": 20.0, "correction_low": 0.0}
    result, gradient = solve(DECOUPLED | mask, two_groups(sampler=[*SAMPLER[:4], FAR]))
    assert result.finite_by_sample.all()
    assert gradient == close([0.5 / 8, 2 / 8, -8 / 4, -0.5 / 4, 0])


@pytest.mark.parametrize("given", [{}, DECOUPLED], ids=str)
def test_without_an_advantage_a_ratio_too_large_for_a_float_changes_nothing(given: dict[str, Any]) -> None:
    groups = two_groups(second_rewards=(6, 6), sampler=[*SAMPLER[:4], FAR])
    result, gradient = solve(given | {"kl_weight": 0.1}, groups, REFERENCE)
    assert result.finite_by_sample.all()
    assert math.isfinite(result.loss.item())
    assert gradient[4] == 0


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
@pytest.mark.parametrize("given", CONFIGS, ids=str)
def test_a_log_prob_that_is_not_finite_names_its_sample(given: dict[str, Any], bad: float) -> None:
    config = LossConfig.model_validate(given)
    tokens = join(step_tokens(two_groups(), config, MAX_ANSWER_TOKENS, REFERENCE))
    result = policy_loss(torch.tensor([-1.0, -2.0, -3.0, bad, -2.0]), tokens, config)
    assert result.finite_by_sample.tolist() == [True, True, False, True]
    if math.isnan(bad):  # minus infinity may be masked, NaN never
        assert result.loss.isnan()


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


# Imitation.


def test_imitation() -> None:
    # Three tokens, each 1/3: (1 + 2 + 3) / 3 = 2.
    logprobs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    result = nll_loss(logprobs, join_tokens(imitation_tokens([2, 1]), CPU))
    result.loss.backward()
    assert result.loss.item() == close(2)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == close([-1 / 3] * 3)
    assert dict(zip(NLL_SUMS, result.sums.tolist(), strict=True)) == close({"loss": 2, "entropy": 2})
    assert result.finite_by_sample.tolist() == [True, True]


def test_parts_of_an_imitated_step_add_up_and_a_filler_adds_nothing() -> None:
    first, second = imitation_tokens([2, 1])
    logprobs = torch.tensor([-1.0, -2.0, -3.0])
    parts = [
        nll_loss(logprobs[:2], join_tokens([first], CPU)),
        nll_loss(logprobs[2:], join_tokens([second], CPU)),
        nll_loss(logprobs[2:], join_tokens([second], CPU, weight=0.0)),
    ]
    assert [part.loss.item() for part in parts] == close([1, 1, 0])
    assert sum(part.sums for part in parts).tolist() == close([2, 2])  # type: ignore[union-attr]


def test_imitating_what_is_impossible_names_the_sample() -> None:
    result = nll_loss(torch.tensor([-1.0, -2.0, -math.inf]), join_tokens(imitation_tokens([2, 1]), CPU))
    assert result.finite_by_sample.tolist() == [True, False]
