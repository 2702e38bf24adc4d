"""Run files: every shipped one is valid, and what is wrong in one is said with file, key, value and remedy."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w
from pydantic import ValidationError

from learner.loss_config import PRESETS, LossConfig
from orchestrator.commands.cli import main
from orchestrator.config import ConfigError, RunConfig, for_task, load_run_config
from orchestrator.study.config import load_study_config
from records.task import load_task
from tasks.tvr.task import TASK
from tiny_policy.pretrain import load_pretrain_config

RUNS = Path("deploy/runs")
TINY = RUNS / "tiny_cpu.toml"
TVR_RUN = for_task(RunConfig, TASK)


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_run_file_is_valid(path):
    if "pretrain" in path.name:
        assert load_pretrain_config(path).see.steps
    elif path.name.startswith("study"):
        assert load_study_config(path).arms
    else:
        content = tomllib.loads(path.read_text())
        kind = for_task(RunConfig, load_task(content.get("task", "tvr")))
        assert kind.model_validate(content).loop.steps > 0


def test_every_field_is_documented():
    def check(model, prefix=""):
        for name, field in model.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                check(field.annotation, f"{prefix}{name}.")
            else:
                assert field.description, f"{prefix}{name} has no line of documentation"

    check(TVR_RUN)


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
        ("learner.learning_rate=inf", "learner.learning_rate = inf: input should be a finite number"),
        ("rollout.temperature=inf", "rollout.temperature = inf: input should be a finite number"),
        ("learner.loss.kl_weight=inf", "learner.loss.kl_weight = inf: input should be a finite number"),
    ],
)
def test_a_wrong_value_names_key_value_and_remedy(override, says):
    with pytest.raises(ConfigError) as error:
        load_run_config(TINY, [override])
    assert says in str(error.value)


def dumped(config: RunConfig, folder: Path) -> Path:
    """The resolved file that a run leaves behind, every key given."""
    path = folder / "config.toml"
    path.write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
    return path


@pytest.mark.parametrize("algorithm", [name for name in PRESETS if name != "grpo"])
def test_another_algorithm_over_a_resolved_file_is_that_algorithm(algorithm, tmp_path):
    path = dumped(load_run_config(TINY, ["learner.loss.clip_high=0.2"]), tmp_path)
    config = load_run_config(path, [f"learner.loss.algorithm={algorithm}"])
    assert config.learner.loss == LossConfig(algorithm=algorithm)


def test_an_algorithm_that_the_files_choice_contradicts_is_refused_with_both_values():
    with pytest.raises(ConfigError) as error:
        load_run_config(TINY, ["learner.loss.algorithm=gspo"])
    assert str(error.value).startswith(f"{TINY}: learner.loss.clip_high = 0.28: was chosen beside another algorithm")
    assert "gspo sets 0.04;" in str(error.value)
    assert "--set learner.loss.clip_high=0.04 or --set learner.loss.clip_high=0.28" in str(error.value)


@pytest.mark.parametrize("first", [0, 1])
def test_what_is_set_beside_the_algorithm_settles_it(first):
    overrides = ["learner.loss.algorithm=gspo", "learner.loss.clip_high=0.05"]
    loss = load_run_config(TINY, [overrides[first], overrides[1 - first]]).learner.loss
    assert loss == LossConfig(algorithm="gspo", clip_high=0.05)


def test_a_choice_that_fits_the_algorithm_stays():
    loss = load_run_config(TINY, ["learner.loss.algorithm=dr_grpo", "learner.loss.kl_weight=0.01"]).learner.loss
    assert loss == LossConfig(algorithm="dr_grpo", clip_high=0.28, kl_weight=0.01)


def test_a_clip_that_the_algorithm_has_no_use_for_is_refused():
    with pytest.raises(ConfigError, match=r"clip_high 0.28 has no effect with objective = reinforce.* set it to 0.2"):
        load_run_config(TINY, ["learner.loss.algorithm=rloo"])
    rloo = load_run_config(TINY, ["learner.loss.algorithm=rloo", "learner.loss.clip_high=0.2"]).learner.loss
    assert rloo == LossConfig(algorithm="rloo")


def with_loss(loss, **sections):
    content = tomllib.loads(TINY.read_text())
    content["learner"]["loss"] = loss
    for section, settings in sections.items():
        content[section] |= settings
    return TVR_RUN.model_validate(content)


ON_POLICY = {"max_staleness": 0}
PAPERS_GSPO = {"algorithm": "gspo", "clip_low": 3e-4, "clip_high": 4e-4}
UNCORRECTED = {"algorithm": "rloo", "proximal": "sampler", "correction": "none"}


def test_reinforce_on_older_samples_without_a_correction_is_refused():
    says = "loop.max_staleness 1 allows.* set proximal to learner .* or max_staleness to 0"
    with pytest.raises(ValidationError, match=says):
        with_loss(UNCORRECTED)
    with pytest.raises(ValidationError, match=says):
        with_loss({"objective": "reinforce"})
    with_loss(UNCORRECTED, loop=ON_POLICY)
    with_loss({"algorithm": "rloo"})


@pytest.mark.parametrize(
    ("sections", "cause"),
    [
        ({}, "loop.max_staleness 1;"),
        ({"loop": ON_POLICY, "rollout": {"dtype": "bfloat16"}}, "rollout.dtype bfloat16;"),
        ({"loop": ON_POLICY, "learner": {"dtype": "bfloat16"}}, "learner.dtype bfloat16;"),
        ({"rollout": {"dtype": "float16"}}, "rollout.dtype float16, loop.max_staleness 1;"),
    ],
)
def test_the_papers_gspo_is_refused_where_samples_are_old_or_rounded(sections, cause):
    with pytest.raises(ValidationError) as error:
        with_loss(PAPERS_GSPO, **sections)
    assert "learner.loss.clip_low 0.0003 and clip_high 0.0004" in str(error.value)
    assert f"{cause} raise both to 0.01 or more, or take max_staleness 0 and float32" in str(error.value)
    with_loss({"algorithm": "gspo"}, **sections)


def test_the_papers_gspo_is_taken_in_step_and_in_float32():
    assert with_loss(PAPERS_GSPO, loop=ON_POLICY).learner.loss.clip_low == 3e-4
    with pytest.raises(ValidationError, match="raise both"):
        with_loss(PAPERS_GSPO | {"clip_low": 0.03})


def test_a_wrong_key_ends_with_status_2_and_no_traceback():
    command = [sys.executable, "-m", "orchestrator.commands.cli", "train", str(TINY), "--set", "loop.stepz=3"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "tiny_cpu.toml: loop.stepz = 3: unknown key; did you mean steps?" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_another_recipe_than_the_data_set_has_ends_with_status_2_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "recipe.json").write_text('{"seed": 7, "spp": 8}')
    command = [sys.executable, "-m", "orchestrator.commands.cli", "train", str(TINY), "--out", str(tmp_path / "run")]
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
    main([*command, "--help"])
    assert "example" in capsys.readouterr().out


def test_configs_load_no_engine():
    heavy = "{'torch', 'vllm', 'ray', 'deepspeed'}"
    code = f"import orchestrator.config, sys; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
