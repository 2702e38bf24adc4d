import subprocess
import sys

import pytest
from pydantic import ValidationError

from rollout.config import RolloutConfig


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="top_p"):
        RolloutConfig.model_validate({"top_p": 0.9})


def test_answers_must_leave_room_for_a_prompt() -> None:
    with pytest.raises(ValidationError, match="no room for a prompt"):
        RolloutConfig(max_answer_tokens=512, max_model_len=512)


@pytest.mark.parametrize("name", ["temperature", "timeout_s"])
def test_numbers_are_finite(name: str) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        RolloutConfig.model_validate({name: float("inf")})


def test_every_field_is_described() -> None:
    assert all(field.description for field in RolloutConfig.model_fields.values())


def test_importing_config_and_actor_loads_no_engine() -> None:
    code = "import sys, rollout.config, rollout.actor; print({'vllm', 'torch', 'transformers'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "set()"
