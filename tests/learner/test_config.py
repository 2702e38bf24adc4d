"""The learner's section of a run file."""

import math
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from learner.config import LearnerConfig, LearnerJob, learning_rate


def test_every_field_says_what_it_does() -> None:
    assert [name for name, field in LearnerConfig.model_fields.items() if not field.description] == []


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match="learning_rat"):
        LearnerConfig(learning_rat=1e-3)  # type: ignore[call-arg]


def test_bfloat16_without_master_weights_is_refused() -> None:
    with pytest.raises(ValidationError, match="zero_stage 0 keeps no float32 master weights"):
        LearnerConfig(dtype="bfloat16", zero_stage=0)


def test_offloading_without_master_weights_is_refused() -> None:
    with pytest.raises(ValidationError, match="zero_stage 0 cannot offload"):
        LearnerConfig(offload_optimizer=True, zero_stage=0)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_other_stages_take_bfloat16_and_offload(stage: int) -> None:
    config = LearnerConfig(dtype="bfloat16", offload_optimizer=True, zero_stage=stage)
    assert config.offload_optimizer
    assert LearnerConfig(zero_stage=0).dtype == "float32"


def test_it_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        LearnerConfig().zero_stage = 3  # type: ignore[misc]


def test_learning_needs_samples_of_a_temperature() -> None:
    settings: dict[str, Any] = {"model": "m", "reference": "m", "folder": "f", "max_answer_tokens": 4, "steps": 1}
    assert LearnerJob(**settings, temperature=0.5).temperature == 0.5
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"temperature is {temperature}"):
            LearnerJob(**settings, temperature=temperature)


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "max_grad_norm", "timeout_s"])
def test_numbers_are_finite(name: str, value: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        LearnerConfig.model_validate({name: value})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [1, 1, 1, 1, 1, 1]),
        ({"warmup_steps": 2}, [1 / 2, 1, 1, 1, 1, 1]),
        # Cosines of the angles 0, 45, 90 and 135 degrees: (1 + 0.707107) / 2 = 0.853553. A seventh step were 0.
        ({"warmup_steps": 2, "schedule": "cosine"}, [1 / 2, 1, 1, 0.853553, 0.5, 0.146447]),
        ({"schedule": "cosine"}, [1, 0.933013, 0.75, 0.5, 0.25, 0.066987]),  # 0, 30, ... 150 degrees
    ],
)
def test_the_learning_rate_rises_in_a_line_and_falls_along_half_a_cosine(
    given: dict[str, Any], expected: list[float]
) -> None:
    config = LearnerConfig.model_validate({"learning_rate": 1e-3} | given)
    rates = [learning_rate(config, step, steps=6) for step in range(1, 7)]
    assert rates == pytest.approx([rate * 1e-3 for rate in expected], rel=1e-5)


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, learner.config; print(sorted({'torch', 'transformers', 'deepspeed', 'ray'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
