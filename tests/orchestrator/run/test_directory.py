"""The run directory: who may go on in it, from where, and what is kept."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import torch

import orchestrator.run.directory
from learner.checkpoint import CheckpointWriter
from orchestrator.config import ConfigError, RunConfig, for_task, load_run_config
from orchestrator.run.directory import RunDirectory, claimed_run_directory, open_run_directory
from records.samples import PolicyVersion
from tasks.tvr.task import TASK, PairSet
from tests.fakes import GOLD, make_evaluation, make_held_out_reply, make_prompt

TINY = Path("deploy/runs/tiny_cpu.toml")
CONFIG = load_run_config(TINY)
REPORT = TASK.report([TASK.judge("", GOLD, {})], None)


@pytest.fixture
def converted(tmp_path: Path) -> PairSet:
    """What identifies a data set that was not rendered here."""
    return data_set(tmp_path / "converted", "a1", "b2")


def data_set(folder: Path, *fingerprints: str) -> PairSet:
    for split, fingerprint in zip(("train", "test"), fingerprints, strict=True):
        (folder / split).mkdir(parents=True)
        (folder / split / "state.json").write_text(json.dumps({"_fingerprint": fingerprint}))
    (folder / "dataset_dict.json").write_text("{}")
    return PairSet(folder)


@pytest.fixture
def begun(tmp_path: Path, converted: PairSet) -> Path:
    """A directory in which a run with CONFIG has begun."""
    (tmp_path / "run").mkdir()
    open_run_directory(CONFIG, tmp_path / "run", "train", resume=False).begin(
        CONFIG, "train", converted, PolicyVersion(0)
    )
    return tmp_path / "run"


def resumed(out: Path, *overrides: str) -> RunDirectory:
    return open_run_directory(config_with(*overrides), out, "train", resume=True)


def save_checkpoint(out: Path, version: int) -> Path:
    """What a learner of one rank leaves there at *version*."""
    writer = CheckpointWriter(out / "checkpoints", keep=9, rank=0, world_size=1, timeout_s=10)
    writer.begin(PolicyVersion(version))
    writer.write(PolicyVersion(version), {"master/weight": torch.full((3,), float(version))}, {})
    writer.wait()
    return out / "checkpoints" / f"step-{version:06d}"


def config_with(*overrides: str) -> RunConfig:
    return load_run_config(TINY, overrides)


def written(out: Path, name: str = "config.toml") -> RunConfig:
    return for_task(RunConfig, TASK).model_validate(tomllib.loads((out / name).read_text()))


@pytest.mark.parametrize("resume", [False, True])
def test_a_new_directory_begins_at_version_0_with_the_resolved_config(tmp_path: Path, converted: PairSet, resume: bool):
    out = tmp_path / "some" / "run"
    config = config_with("loop.steps=3")
    with claimed_run_directory(config, out, "train", resume) as directory:
        assert (directory.version, directory.checkpoint, directory.torn) == (0, None, ())
        directory.begin(config, "train", converted, directory.version)
    found = written(out)
    assert found.loop.steps == 3
    assert (found.model, found.data.path) == (Path("deploy/models/tiny").resolve(), Path("data/tiny").resolve())
    again = claimed_run_directory(found, out, "train", resume=True)  # as run from anywhere else
    with again as directory:
        assert directory.changed == ()


def test_a_run_that_does_not_begin_leaves_nothing(tmp_path: Path):
    out = tmp_path / "run"
    with claimed_run_directory(CONFIG, out, "train", resume=False):
        assert out.exists()
    assert not out.exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with claimed_run_directory(CONFIG, tmp_path / "notes", "train", resume=False):
        pass
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["mine.txt"]


def test_a_directory_has_one_run_at_a_time(begun: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(orchestrator.run.directory, "LOCK_WAIT_S", 0.0)
    for _ in range(2):  # the first one ends
        with (
            claimed_run_directory(CONFIG, begun, "train", resume=True),
            pytest.raises(ConfigError, match=re.escape(f"--out {begun}: another run works in it; wait, end it")),
        ):
            claimed_run_directory(CONFIG, begun, "train", resume=True).__enter__()


@pytest.mark.parametrize(
    ("out", "why"), [("/proc/run", "No such file"), ("file", "File exists"), ("file/run", "Not a")]
)
def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path: Path, out: str, why: str):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"a run cannot be written there .{why}.*; name another folder"):
        claimed_run_directory(CONFIG, tmp_path / out, "train", resume=False).__enter__()


def test_without_resume_a_directory_that_holds_a_run_is_refused_and_the_remedy_named(begun: Path):
    with pytest.raises(ConfigError, match=re.escape(f"--out {begun}: holds a run already; add --resume")):
        open_run_directory(CONFIG, begun, "train", resume=False)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed=7", "seed was 1 and is 7"),
        ("data.seed=7", "data.seed was 100 and is 7"),
        ("loop.groups_per_step=8", "loop.groups_per_step was 16 and is 8"),
        ("loop.max_staleness=0", "loop.max_staleness was 1 and is 0"),
        ("rollout.samples_per_prompt=4", "rollout.samples_per_prompt was 8 and is 4"),
        ("rollout.temperature=0.7", "rollout.temperature was 1.0 and is 0.7"),
        ("rollout.max_answer_tokens=32", "rollout.max_answer_tokens was 64 and is 32"),
        ("reward_service.rule=naive", "reward_service.rule was 'star' and is 'naive'"),
        ("evaluation.max_samples=8", "evaluation.max_samples was 300 and is 8"),
        ("learner.freeze=vision", "learner.freeze was 'nothing' and is 'vision'"),
        ("learner.lora_rank=4", "learner.lora_rank was 0 and is 4"),
        ("learner.learning_rate=1e-5", "learner.learning_rate was 0.0002 and is 1e-05"),
        ("learner.loss.kl_weight=0.1", "learner.loss.kl_weight was 0.0 and is 0.1"),
    ],
)
def test_resume_refuses_what_would_be_another_run_with_key_old_and_new_value(begun: Path, override: str, says: str):
    with pytest.raises(ConfigError, match=re.escape(f"--resume {begun}: {says}; go on as the run began, or begin")):
        resumed(begun, override)


def test_resume_refuses_another_model(begun: Path, tmp_path: Path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    before = Path("deploy/models/tiny").resolve()
    with pytest.raises(ConfigError, match=re.escape(f"model was '{before}' and is '{tmp_path}/other'")):
        resumed(begun, f"model={tmp_path}/other")


def test_resume_refuses_the_other_kind_of_training(begun: Path):
    with pytest.raises(ConfigError, match="holds a run of `star-r1 train`, and this is `star-r1 sft`"):
        open_run_directory(CONFIG, begun, "sft", resume=True)


def test_resume_refuses_fewer_steps_than_are_made(begun: Path):
    save_checkpoint(begun, 6)
    assert resumed(begun, "loop.steps=6").version == 6
    with pytest.raises(ConfigError, match=r"loop.steps is 4 and the run has made 6; give more"):
        resumed(begun, "loop.steps=4")


def test_resume_knows_the_data_by_what_they_hold(begun: Path, converted: PairSet, tmp_path: Path):
    directory = resumed(begun)
    directory.check_data(PairSet(converted.folder.rename(tmp_path / "moved")))
    other = data_set(tmp_path / "other", "a1", "c3")
    with pytest.raises(
        ConfigError, match=r"data known as fingerprints a1, b2, and these are known as fingerprints a1, c3"
    ):
        directory.check_data(other)
    (other.folder / "recipe.json").write_text("{}")
    with pytest.raises(ConfigError, match="known as recipe 44136fa355b3"):
        directory.check_data(other)


@pytest.mark.parametrize(
    "override",
    ["loop.steps=150", "learner.ranks=2", "checkpoint.keep=3", "rollout.workers=2", "data.workers=2"],
)
def test_resume_says_what_may_change_keeps_the_new_value_and_what_it_was(
    begun: Path, converted: PairSet, override: str
):
    save_checkpoint(begun, 2)
    before, config = written(begun), config_with(override)
    directory = resumed(begun, override)
    key, _, value = override.partition("=")
    (line,) = directory.changed
    assert line.startswith(f"going on with {key} = {value}, which was ")
    directory.begin(config, "train", converted, directory.version)
    assert directory.version == 2
    assert (written(begun, "config-000002.toml"), before.loop.steps) == (before, 80)
    assert written(begun) != before
    assert resumed(begun, override).changed == ()


def test_begin_forgets_the_rows_after_the_checkpoint_and_keeps_the_others(begun: Path, converted: PairSet):
    rows = [{"step": step, "loss": step / 8} for step in range(1, 6)]
    (begun / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_checkpoint(begun, 3)
    directory = resumed(begun)
    assert directory.rows() == rows  # not before the workers are ready
    directory.begin(CONFIG, "train", converted, directory.version)
    assert directory.rows() == rows[:3]
    assert not list(begun.glob("config-*"))  # nothing changed


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(begun: Path, converted: PairSet):
    (begun / "metrics.jsonl").write_text('{"step": 1}\n')
    directory = resumed(begun)
    assert directory.changed == ("no checkpoint yet: the run begins anew, and its 1 steps are made again",)
    directory.begin(CONFIG, "train", converted, directory.version)
    assert directory.version == 0
    assert directory.rows() == []


def test_a_run_without_a_whole_checkpoint_is_not_thrown_away(begun: Path):
    damaged = save_checkpoint(begun, 4) / "rank-0.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"there is no whole checkpoint(.|\n)*step-000004/rank-0.safetensors: has "):
        resumed(begun)


def test_a_finished_run_without_checkpoints_is_not_thrown_away(begun: Path):
    (begun / "model").mkdir()
    with pytest.raises(ConfigError, match="beginning anew would replace what the run made; name another folder"):
        resumed(begun)


@pytest.mark.parametrize("name", ["config.toml", "run.json"])
def test_a_record_that_cannot_be_read_is_named(begun: Path, name: str):
    (begun / name).write_text('{"torn')
    with pytest.raises(ConfigError, match=r"its config.toml or run.json cannot be read .*; name another folder"):
        resumed(begun)


def test_evaluations_are_kept_added_to_and_renewed(begun: Path):
    judged = REPORT | {"careful": 0.25}
    first = resumed(begun)
    assert first.evaluations() == {}
    first.add_evaluation("before", make_evaluation(REPORT, 0))
    second = resumed(begun)
    second.add_evaluation("after", make_evaluation(REPORT, 2))
    second.add_evaluation("after", make_evaluation(judged, 3, 4))
    assert second.evaluations() == {"before": {"versions": [0, 0], **REPORT}, "after": {"versions": [3, 4], **judged}}
    assert sorted(path.name for path in begun.iterdir()) == ["config.toml", "evaluation.json", "replies", "run.json"]


def said(directory: RunDirectory) -> dict[str, str]:
    return {name: line["reply"] for name, line in directory.replies("version 20").items()}


def test_an_evaluation_keeps_its_replies_and_their_means(begun: Path):
    directory = resumed(begun)
    assert directory.replies("version 20") == {}
    replies = tuple(
        make_held_out_reply(make_prompt(name), text) for name, text in (("b/a/left", "x\ny\u2028"), ("a", ""))
    )
    directory.add_evaluation("version 20", make_evaluation(REPORT, 20, replies=replies))
    assert said(directory) == {"b/a/left": "x\ny\u2028", "a": ""}
    assert list(directory.replies("version 20")) == ["b/a/left", "a"]
    directory.add_evaluation("version 20", make_evaluation(REPORT, 20, replies=replies[1:]))
    assert said(directory) == {"a": ""}
    assert [path.name for path in (begun / "replies").iterdir()] == ["version-20.jsonl"]  # and no part of one
    assert "replies" not in directory.evaluations()["version 20"]


def test_an_evaluation_whose_replies_cannot_be_written_is_not_there(begun: Path):
    directory = resumed(begun)
    (begun / "replies").write_text("no folder")
    with pytest.raises(OSError, match="replies"):
        directory.add_evaluation("before", make_evaluation(REPORT, 0))
    assert directory.evaluations() == {}


def test_a_torn_newest_checkpoint_is_passed_over_and_named(begun: Path):
    whole = save_checkpoint(begun, 2)
    damaged = save_checkpoint(begun, 4) / "rank-0.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (begun / "checkpoints" / "step-000006.part").mkdir()
    directory = resumed(begun)
    assert directory.checkpoint is not None
    assert (directory.version, directory.checkpoint.path) == (2, whole)
    unfinished, short = (torn.reason for torn in directory.torn)  # newest first
    assert unfinished == "step-000006.part: was not finished"
    assert short.startswith("step-000004/rank-0.safetensors: has ")


def test_a_checkpoint_that_is_found_damaged_is_passed_over_for_the_next_older(begun: Path):
    whole = save_checkpoint(begun, 2)
    for version in (4, 6):
        save_checkpoint(begun, version)
    (begun / "checkpoints" / "step-000003.part").mkdir()
    (begun / "checkpoints" / "step-000008.part").mkdir()
    directory = resumed(begun)
    assert directory.version == 6
    directory.pass_over(["rank-0 is damaged", "rank-1 too"])
    assert directory.version == 4
    directory.pass_over(["rank-2 is damaged"])
    assert directory.checkpoint is not None
    assert (directory.version, directory.checkpoint.path) == (2, whole)
    assert [(torn.version, torn.reason) for torn in directory.torn] == [
        (8, "step-000008.part: was not finished"),
        (6, "rank-0 is damaged; rank-1 too"),
        (4, "rank-2 is damaged"),
        (3, "step-000003.part: was not finished"),
    ]


def test_a_run_whose_last_checkpoint_is_found_damaged_is_not_thrown_away(begun: Path):
    save_checkpoint(begun, 4)
    directory = resumed(begun)
    with pytest.raises(ConfigError, match=r"there is no whole checkpoint to go on from(.|\n)*rank-0 is damaged"):
        directory.pass_over(["rank-0 is damaged"])


def test_the_checkpoint_of_a_relative_directory_has_an_absolute_path(begun: Path, monkeypatch: pytest.MonkeyPatch):
    whole = save_checkpoint(begun, 2)
    config = config_with(f"model={Path('deploy/models/tiny').resolve()}")
    monkeypatch.chdir(begun.parent)
    directory = open_run_directory(config, Path("run"), "train", resume=True)
    assert directory.checkpoint is not None
    assert (directory.path, directory.checkpoint.path) == (begun, whole)  # workers have other working directories
