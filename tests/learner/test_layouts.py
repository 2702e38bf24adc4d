"""Shared rows against the reference layout and against transformers' own forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from learner.batch import Row, answer_logprobs, build_row, collate_per_sample, collate_shared, shared_prompt
from learner.encode import PairEncoder
from tvr.records import SampleGroup

TEMPERATURE = 0.8
CASES: dict[str, list[dict[str, Any]]] = {
    "one answer": [{"lengths": [7]}],
    "one token": [{"lengths": [1]}],
    "unequal answers": [{"lengths": [1, 12, 5, 1]}],
    "pictures of different sizes": [{"lengths": [3, 9], "sizes": ((96, 48), (48, 80))}],
    "padded together": [
        {"lengths": [6, 1, 4], "objects": 1},
        {"lengths": [2], "sizes": ((64, 64), (32, 48))},
        {"lengths": [17, 3], "objects": 2, "sizes": ((112, 80), (112, 80))},
    ],
}


@pytest.fixture(scope="session")
def encoder(policy_folder: str) -> PairEncoder:
    return PairEncoder(policy_folder)


def build_rows(policy: Any, encoder: PairEncoder, groups: Sequence[SampleGroup]) -> list[Row]:
    rope = policy.model.get_rope_index
    pictures = [encoder.encode(group.prompt, shared_prompt(group)) for group in groups]
    return [build_row(*pair, encoder.image_token_id, rope) for pair in zip(groups, pictures, strict=True)]


def run(policy: Any, logprobs: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Log-probs and the gradient of a sum of them with uneven weights, all parameters in one vector."""
    policy.zero_grad()
    (logprobs * torch.linspace(-1, 1.5, len(logprobs))).mean().backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])
    return logprobs.detach().numpy(), gradient.numpy()


def transformers_logprobs(policy: Any, encoder: PairEncoder, groups: Sequence[SampleGroup]) -> torch.Tensor:
    """One sample at a time through the model's own forward pass: its own mask, its own positions, all logits."""
    found = []
    for group in groups:
        pictures = encoder.encode(group.prompt, shared_prompt(group))
        for sample in group.samples:
            ids = np.concatenate([sample.trace.prompt_token_ids, sample.trace.token_ids]).astype(np.int64)
            input_ids = torch.from_numpy(ids)[None]
            logits = policy(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                mm_token_type_ids=(input_ids == encoder.image_token_id).int(),
                pixel_values=pictures.pixel_values,
                image_grid_thw=pictures.grid_thw,
            ).logits[0]
            table = torch.log_softmax(logits / TEMPERATURE, dim=-1)
            start = len(sample.trace.prompt_token_ids)
            found += [table[at - 1, ids[at]] for at in range(start, len(ids))]
    return torch.stack(found)


@pytest.mark.parametrize("case", CASES)
def test_all_layouts_give_the_same_logprobs_and_gradients(
    case: str, policy: Any, encoder: PairEncoder, make_group: Callable[..., Any]
) -> None:
    groups = [make_group(seed, **arguments).group for seed, arguments in enumerate(CASES[case])]
    rows = build_rows(policy, encoder, groups)
    shared = run(policy, answer_logprobs(policy, collate_shared(rows, torch.float32), TEMPERATURE))
    per_sample = run(policy, answer_logprobs(policy, collate_per_sample(rows, torch.float32), TEMPERATURE))
    plain = run(policy, transformers_logprobs(policy, encoder, groups))
    for other in (per_sample, plain):
        np.testing.assert_allclose(shared[0], other[0], atol=1e-5, rtol=0)
        np.testing.assert_allclose(shared[1], other[1], atol=1e-5, rtol=0)
    assert np.abs(plain[1]).max() > 0.01, "gradients too small for the comparison to mean anything"


def test_a_sampled_picture_placeholder_is_a_token_like_any_other(
    policy: Any, encoder: PairEncoder, make_group: Callable[..., Any]
) -> None:
    group = make_group(0, [4, 3]).group
    first, second = group.samples
    odd = replace(first, trace=replace(first.trace, token_ids=np.array([9, encoder.image_token_id, 9, 9], np.int32)))
    rows = build_rows(policy, encoder, [replace(group, samples=(odd, second))])
    plain_rows = build_rows(policy, encoder, [group])
    with torch.no_grad():
        shared = answer_logprobs(policy, collate_shared(rows, torch.float32), TEMPERATURE)
        per_sample = answer_logprobs(policy, collate_per_sample(rows, torch.float32), TEMPERATURE)
        sibling = answer_logprobs(policy, collate_shared(plain_rows, torch.float32), TEMPERATURE)[4:]
    np.testing.assert_allclose(shared, per_sample, atol=1e-5, rtol=0)
    np.testing.assert_allclose(shared[4:], sibling, atol=1e-5, rtol=0)


def test_a_row_holds_prompt_and_pictures_once(
    policy: Any, encoder: PairEncoder, make_group: Callable[..., Any]
) -> None:
    group = make_group(0, [3, 4, 5]).group
    batch = collate_shared(build_rows(policy, encoder, [group]), torch.float32)
    assert batch.input_ids.shape == (1, len(shared_prompt(group)) + 3 + 4 + 5)
    assert len(batch.image_grid_thw) == 2


def test_samples_of_different_prompts_are_refused(make_group: Callable[..., Any]) -> None:
    first, second = make_group(0, [3]).group, make_group(1, [3], objects=2).group
    with pytest.raises(ValueError, match="other prompt tokens than its siblings"):
        shared_prompt(SampleGroup(prompt=first.prompt, samples=first.samples + second.samples))


def test_pictures_that_do_not_fit_the_prompt_are_refused(encoder: PairEncoder, make_group: Callable[..., Any]) -> None:
    # 64x48 at 16 pixels a token: 4 * 3 = 12 tokens a picture; 96x48: 18.
    small, large = make_group(0, [1]).group, make_group(1, [1], sizes=((96, 48), (64, 48))).group
    with pytest.raises(ValueError, match="holds 24 image tokens and its pictures need 30"):
        encoder.encode(large.prompt, shared_prompt(small))
