"""The run directory: who may go on in it, from where, and what is kept."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import torch

from learner.checkpoint import CheckpointWriter
from orchestrator.config import ConfigError, RunConfig, load_run_config
from orchestrator.evaluate import read_reply
from orchestrator.metrics import read_rows
from orchestrator.run_directory import open_run_directory
from tests.fakes import GOLD, make_evaluation, make_prompt
from tvr.answer import Malformed
from tvr.metrics import judge, summarise
from tvr.records import PolicyVersion

TINY = Path("deploy/runs/tiny_cpu.toml")
CONFIG = load_run_config(TINY)
REPORT = summarise([])


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A directory in which a run with CONFIG has begun."""
    open_run_directory(CONFIG, tmp_path / "run", resume=False).begin(CONFIG)
    return tmp_path / "run"


def save_checkpoint(out: Path, version: int) -> Path:
    """What a learner of one rank leaves there at *version*."""
    writer = CheckpointWriter(out / "checkpoints", keep=9, rank=0, world_size=1, timeout_s=10)
    writer.begin(PolicyVersion(version))
    writer.write(PolicyVersion(version), {"master/weight": torch.full((3,), float(version))}, {})
    writer.wait()
    return out / "checkpoints" / f"step-{version:06d}"


def config_with(*overrides: str) -> RunConfig:
    return load_run_config(TINY, overrides)


@pytest.mark.parametrize("resume", [False, True])
def test_a_new_directory_begins_at_version_0_with_the_resolved_config(tmp_path: Path, resume: bool):
    out = tmp_path / "some" / "run"
    directory = open_run_directory(config_with("loop.steps=3"), out, resume)
    assert not out.exists()  # nothing is left behind before the workers are ready
    directory.begin(config_with("loop.steps=3"))
    assert (directory.version, directory.checkpoint, directory.torn) == (0, None, [])
    assert RunConfig.model_validate(tomllib.loads((out / "config.toml").read_text())) == config_with("loop.steps=3")


def test_without_resume_a_directory_that_holds_a_run_is_refused_and_the_remedy_named(begun: Path):
    with pytest.raises(ConfigError, match=re.escape(f"--out {begun}: holds a run already; add --resume")):
        open_run_directory(CONFIG, begun, resume=False)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed=7", "seed was 1 and is 7"),
        ("data.seed=7", "data.seed was 100 and is 7"),
        ("loop.groups_per_step=8", "loop.groups_per_step was 16 and is 8"),
        ("rollout.samples_per_prompt=4", "rollout.samples_per_prompt was 8 and is 4"),
        ("learner.freeze=vision", "learner.freeze was 'nothing' and is 'vision'"),
        ("learner.lora_rank=4", "learner.lora_rank was 0 and is 4"),
        ("learner.lora_alpha=8", "learner.lora_alpha was 32 and is 8"),
    ],
)
def test_resume_refuses_what_would_be_another_run_with_key_old_and_new_value(begun: Path, override: str, says: str):
    with pytest.raises(ConfigError, match=re.escape(f"--resume {begun}: {says}; go on as the run began")):
        open_run_directory(config_with(override), begun, resume=True)


def test_resume_refuses_another_model(begun: Path, tmp_path: Path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=re.escape(f"model was 'deploy/models/tiny' and is '{tmp_path}/other'")):
        open_run_directory(config_with(f"model={tmp_path}/other"), begun, resume=True)


@pytest.mark.parametrize(
    "override",
    ["loop.steps=150", "learner.ranks=2", "learner.learning_rate=1e-5", "rollout.workers=2", "data.workers=2"],
)
def test_resume_allows_what_may_change_and_keeps_the_new_value(begun: Path, override: str):
    save_checkpoint(begun, 2)
    config = config_with(override)
    directory = open_run_directory(config, begun, resume=True)
    directory.begin(config)
    assert directory.version == 2
    assert RunConfig.model_validate(tomllib.loads((begun / "config.toml").read_text())) == config


def test_begin_forgets_the_rows_after_the_checkpoint_and_keeps_the_others(begun: Path):
    rows = [{"step": step, "loss": step / 8} for step in range(1, 6)]
    (begun / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_checkpoint(begun, 3)
    directory = open_run_directory(CONFIG, begun, resume=True)
    assert len(read_rows(begun / "metrics.jsonl")) == 5  # not before the workers are ready
    directory.begin(CONFIG)
    assert read_rows(begun / "metrics.jsonl") == rows[:3]


def test_without_a_checkpoint_a_run_begins_again(begun: Path):
    (begun / "metrics.jsonl").write_text('{"step": 1}\n')
    directory = open_run_directory(CONFIG, begun, resume=True)
    directory.begin(CONFIG)
    assert directory.version == 0
    assert read_rows(begun / "metrics.jsonl") == []


def test_evaluations_are_kept_added_to_and_renewed(begun: Path):
    judged = summarise([judge(Malformed(reason="none"), GOLD, view="center", num_tokens=1)])
    first = open_run_directory(CONFIG, begun, resume=True)
    assert first.evaluations() == {}
    first.add_evaluation("before", make_evaluation(REPORT, 0))
    second = open_run_directory(CONFIG, begun, resume=True)
    second.add_evaluation("after", make_evaluation(REPORT, 2))
    second.add_evaluation("after", make_evaluation(judged, 3, 4, careful=0.25, triplets=1.5))
    assert second.reports("before", "after", "never") == {"before": REPORT, "after": judged}
    assert {name: found["versions"] for name, found in second.evaluations().items()} == {
        "before": [0, 0],
        "after": [3, 4],
    }
    assert (second.evaluations()["after"]["careful"], second.evaluations()["after"]["triplets"]) == (0.25, 1.5)
    assert sorted(path.name for path in begun.iterdir()) == ["config.toml", "evaluation.json", "replies"]


def test_an_evaluation_keeps_its_replies_and_their_means(begun: Path):
    directory = open_run_directory(CONFIG, begun, resume=True)
    assert directory.replies("version 20") == {}
    replies = tuple(read_reply(make_prompt(name), text, 9) for name, text in (("b/a/left", "x\ny\u2028"), ("a", "")))
    directory.add_evaluation("version 20", make_evaluation(REPORT, 20, careful=0.25, triplets=1.5, replies=replies))
    assert directory.replies("version 20") == {"b/a/left": "x\ny\u2028", "a": ""}
    assert list(directory.replies("version 20")) == ["b/a/left", "a"]
    directory.add_evaluation("version 20", make_evaluation(REPORT, 20, replies=replies[1:]))
    assert directory.replies("version 20") == {"a": ""}
    assert [path.name for path in (begun / "replies").iterdir()] == ["version-20.jsonl"]  # and no part of one
    found = directory.evaluations()["version 20"]
    assert (found["careful"], found["triplets"], "replies" in found) == (0.0, 0.0, False)


def test_an_evaluation_whose_replies_cannot_be_written_is_not_there(begun: Path):
    directory = open_run_directory(CONFIG, begun, resume=True)
    (begun / "replies").write_text("no folder")
    with pytest.raises(OSError, match="replies"):
        directory.add_evaluation("before", make_evaluation(REPORT, 0))
    assert directory.evaluations() == {}


def test_a_torn_newest_checkpoint_is_passed_over_and_named(begun: Path):
    whole = save_checkpoint(begun, 2)
    damaged = save_checkpoint(begun, 4) / "rank-0.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (begun / "checkpoints" / "step-000006.part").mkdir()
    directory = open_run_directory(CONFIG, begun, resume=True)
    assert directory.checkpoint is not None
    assert (directory.version, directory.checkpoint.path) == (2, whole)
    unfinished, short = (torn.reason for torn in directory.torn)  # newest first
    assert unfinished == "step-000006.part: was not finished"
    assert short.startswith("step-000004/rank-0.safetensors: has ")


def test_the_checkpoint_of_a_relative_directory_has_an_absolute_path(begun: Path, monkeypatch: pytest.MonkeyPatch):
    whole = save_checkpoint(begun, 2)
    config = config_with()
    monkeypatch.chdir(begun.parent)
    directory = open_run_directory(config, Path("run"), resume=True)
    assert directory.checkpoint is not None
    assert (directory.path, directory.checkpoint.path) == (begun, whole)  # workers have other working directories
