"""A tiny policy whose logits are not flat, and prompts with two pictures of noise."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from records.samples import Prompt
from tasks.tvr.language.gold import Gold
from tasks.tvr.language.prompt import build_messages
from tasks.tvr.language.scene import SceneObject
from tests.rollout.loud_policy import write_loud_policy

SCENE = (
    SceneObject(color="red", shape="cube", size="large", material="metal"),
    SceneObject(color="blue", shape="sphere", size="small", material="glass"),
)


def encode_noise(seed: int) -> bytes:
    """A PNG of 112x80 random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, size=(80, 112, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def make_prompt() -> Callable[[int], Prompt]:
    """Prompts that differ in their pictures alone."""

    def make(number: int) -> Prompt:
        return Prompt(
            id=f"{number}/basic/center",
            images=(encode_noise(2 * number), encode_noise(2 * number + 1)),
            messages=build_messages(SCENE),
            gold=Gold(setting="basic", scene=SCENE, transformations=()),
        )

    return make


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `write_loud_policy`."""
    folder = tmp_path_factory.mktemp("policy")
    write_loud_policy(folder)
    return folder
