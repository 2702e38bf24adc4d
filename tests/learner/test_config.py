"""The learner's section of a run file."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from learner.config import LearnerConfig


def test_every_field_says_what_it_does() -> None:
    assert [name for name, field in LearnerConfig.model_fields.items() if not field.description] == []


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match="learning_rat"):
        LearnerConfig(learning_rat=1e-3)  # type: ignore[call-arg]


def test_bfloat16_without_master_weights_is_refused() -> None:
    with pytest.raises(ValidationError, match="zero_stage 0 keeps no float32 master weights"):
        LearnerConfig(dtype="bfloat16", zero_stage=0)


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, learner.config; print(sorted({'torch', 'transformers', 'deepspeed', 'ray'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
