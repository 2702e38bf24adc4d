"""The vision tower by windows of one length, against transformers, which goes through them one by one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from learner import windows
from learner.batch import answer_logprobs, collate, one_sample_a_row
from learner.config import LearnerConfig
from learner.encode import PictureEncoder
from learner.policy import load_policy
from learner.windows import make_segments, picture_features
from tests.learner.test_layouts import TEMPERATURE, build_rows, run, transformers_logprobs
from tiny_policy.make import build_config

SIZES = ((112, 80), (64, 64))  # 5 x 3 and 3 x 3 visual tokens of 24 pixels, in windows of 2 x 2


@pytest.fixture(scope="module")
def encoder(policy_folder: str) -> PictureEncoder:
    return PictureEncoder(policy_folder)


@pytest.fixture(scope="module")
def folder(encoder: PictureEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy whose tower has windows in three layers of four; larger matrices, so that they matter."""
    config = build_config(encoder.processor.tokenizer).to_dict()
    config["vision_config"] |= {"window_size": 48, "fullatt_block_indexes": [2]}
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    folder = tmp_path_factory.mktemp("windowed_policy")
    model.save_pretrained(folder)
    return folder


def load(folder: Path, gradient_checkpointing: bool = False) -> Any:
    """In float64: what is left of rounding is far below what is compared."""
    config = LearnerConfig(gradient_checkpointing=gradient_checkpointing)
    return load_policy(config, str(folder), torch.device("cpu")).double()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("layout", [list, one_sample_a_row])
def test_windows_together_give_the_logprobs_and_gradients_of_windows_one_by_one(
    layout: Callable[..., Any],
    checkpointing: bool,
    folder: Path,
    encoder: PictureEncoder,
    make_group: Callable[..., Any],
) -> None:
    policy = load(folder, checkpointing)
    groups = [make_group(0, [4, 9], sizes=SIZES).group, make_group(1, [3, 5], sizes=((48, 96), (24, 24))).group]
    batch = collate(layout(build_rows(policy, encoder, groups, row_tokens=10_000)))
    together = run(policy, answer_logprobs(policy, batch, TEMPERATURE))
    policy.set_attn_implementation("sdpa")
    one_by_one = run(policy, transformers_logprobs(policy, encoder, groups))
    np.testing.assert_allclose(together[0], one_by_one[0], atol=1e-6, rtol=0)
    np.testing.assert_allclose(together[1], one_by_one[1], atol=1e-6, rtol=0)
    assert np.abs(one_by_one[1]).max() > 0.01, "gradients too small for the comparison to mean anything"


def test_the_windows_of_one_length_are_one_call(
    folder: Path, encoder: PictureEncoder, make_group: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # In tokens, 5 x 3 is cut into 4 4 2 / 2 2 1 and 3 x 3 into 4 2 / 2 1: three lengths. The layer that sees whole
    # pictures has two. The number of pictures plays no part.
    policy = load(folder)
    groups = [make_group(seed, [1], sizes=SIZES).group for seed in range(3)]
    batch = collate(build_rows(policy, encoder, groups, row_tokens=10_000))
    attend, shapes = torch.nn.functional.scaled_dot_product_attention, []

    def count(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        shapes.append((query.shape[0], query.shape[2]))
        return attend(query, *args, **kwargs)

    made = []
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", count)
    monkeypatch.setattr(windows, "make_segments", lambda *part: made.append(make_segments(*part)) or made[-1])
    picture_features(policy.model, batch.pixel_values, batch.image_grid_thw)
    by_window = [(3 * 2, 4), (3 * 5, 8), (3 * 3, 16)]  # 4 patches a token
    whole = [(3, 4 * 9), (3, 4 * 15)]
    assert shapes == [*by_window, *by_window, *whole, *by_window]
    assert made[0].order is None, "windows are brought together in every layer"
