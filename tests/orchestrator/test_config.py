"""Run files: every shipped one is valid, and what is wrong in one is said with file, key, value and remedy."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from learner.pretrain import load_pretrain_config
from orchestrator.cli import main
from orchestrator.config import ConfigError, RunConfig, load_run_config
from orchestrator.study_config import load_study_config

RUNS = Path("deploy/runs")
TINY = RUNS / "tiny_cpu.toml"


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_run_file_is_valid(path):
    if "pretrain" in path.name:
        assert load_pretrain_config(path).see.steps
    elif path.name.startswith("study"):
        assert load_study_config(path).arms
    else:
        assert RunConfig.model_validate(tomllib.loads(path.read_text())).loop.steps > 0


def test_every_field_is_documented():
    def check(model, prefix=""):
        for name, field in model.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                check(field.annotation, f"{prefix}{name}.")
            else:
                assert field.description, f"{prefix}{name} has no line of documentation"

    check(RunConfig)


def test_an_override_replaces_one_value():
    config = load_run_config(TINY, ["loop.steps=3", "learner.learning_rate=1e-5", "data.path=data/other"])
    assert (config.loop.steps, config.learner.learning_rate, config.data.path) == (3, 1e-5, Path("data/other"))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("learner.learnig_rate=1", "learner.learnig_rate = 1: unknown key; did you mean learning_rate?"),
        ("loop.steps=0", "loop.steps = 0: input should be greater than or equal to 1"),
        ("learner.ranks=99", "learner.ranks 99 exceeds loop.groups_per_step 16"),
        ("learner.loss.overlong_buffer_tokens=65", "overlong_buffer_tokens 65 exceeds rollout.max_answer_tokens 64"),
        ("model=no/such", "model = 'no/such': has no config.json; give the path of a model folder"),
        ("loop.steps", "is not section.key=value"),
    ],
)
def test_a_wrong_value_names_key_value_and_remedy(override, says):
    with pytest.raises(ConfigError) as error:
        load_run_config(TINY, [override])
    assert says in str(error.value)


def test_a_wrong_key_ends_with_status_2_and_no_traceback():
    command = [sys.executable, "-m", "orchestrator.cli", "train", str(TINY), "--set", "loop.stepz=3"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "tiny_cpu.toml: loop.stepz = 3: unknown key; did you mean steps?" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_another_recipe_than_the_data_set_has_ends_with_status_2_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "recipe.json").write_text('{"seed": 7, "spp": 8}')
    command = [sys.executable, "-m", "orchestrator.cli", "train", str(TINY), "--out", str(tmp_path / "run")]
    ended = subprocess.run([*command, "--set", f"data.path={tmp_path}/data"], capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    assert "was rendered with" in ended.stderr
    assert "seed = 7" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "command", [["train"], ["sft"], ["replay"], ["data"], ["data", "make"], ["tiny-policy"], ["pretrain"], []]
)
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert "example" in capsys.readouterr().out


def test_configs_load_no_engine():
    heavy = "{'torch', 'vllm', 'ray', 'deepspeed'}"
    code = f"import orchestrator.config, sys; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
