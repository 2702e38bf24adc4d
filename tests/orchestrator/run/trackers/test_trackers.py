"""All trackers of a run: checked before it begins, told of rows, evaluations and samples, heard at its end."""

import io
import sys
import types
from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

import orchestrator.run.trackers.sender
import orchestrator.run.trackers.trackers
from orchestrator.config import ConfigError, RunConfig, TrackersConfig, load_run_config
from orchestrator.run.directory import RunDirectory, open_run_directory
from orchestrator.run.metrics import write_rows
from orchestrator.run.trackers.trackers import check_trackers, tracked
from records.samples import PolicyVersion
from tests.fakes import make_evaluation
from tests.orchestrator.run.trackers.test_samples import TwoPairs, scored
from tests.orchestrator.small_runs import TINY

REPORT = {"metrics": {"TAcc": 0.25, "diff": None}, "mean_tokens": 20.0, "reward": {"total": 1.5, "format": 0.5}}


class KeepingTracker:
    """Keeps all it is told, and raises from step *broken_from* on."""

    def __init__(self, opening, broken_from: int) -> None:
        self.opening = opening
        self.id = opening.id or "first"
        self.broken_from = broken_from
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.samples: list[tuple[int, list[str]]] = []
        self.ok: bool | None = None

    def log(self, step, row):
        if step >= self.broken_from:
            raise ConnectionError("the server is away")
        self.rows.append((step, row))

    def log_samples(self, step, samples):
        self.samples.append((step, [it.id for it in samples]))

    def finish(self, ok):
        self.ok = ok


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Stands for the file of a client; *kept.runs* are those that it opened."""
    client = types.SimpleNamespace(runs=[], broken_from=sys.maxsize, check=lambda: None)

    def open_run(opening):
        client.runs.append(KeepingTracker(opening, client.broken_from))
        return client.runs[-1]

    client.open_run = open_run
    monkeypatch.setattr(orchestrator.run.trackers.trackers, "import_module", lambda name: client)
    monkeypatch.setattr(orchestrator.run.trackers.sender, "TRY_AGAIN_S", (0.0, 0.0))
    return client


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    (tmp_path / "my-run").mkdir()
    return RunDirectory(tmp_path / "my-run")


def config(*overrides: str) -> RunConfig:
    return load_run_config(TINY, ['trackers.use=["tensorboard"]', "trackers.samples_every_steps=2", *overrides])


def follow(directory: RunDirectory, steps: range, *overrides: str, evaluate_at: int | None = None) -> str:
    """What a run that makes *steps* says of its trackers."""
    said = Console(file=io.StringIO(), width=200)
    with tracked(config(*overrides), directory, TwoPairs(), said) as trackers:
        trackers.catch_up(directory)
        for step in steps:
            trackers.row({"step": step, "version": step, "reward": step / 10})
            trackers.samples(step, [scored(0), scored(1)])
            if step == evaluate_at:
                trackers.evaluation(f"version {step}", step, REPORT)
    return said.file.getvalue()


def test_each_row_comes_to_its_step_and_samples_every_so_many(kept, directory):
    assert follow(directory, range(1, 5), "trackers.samples=3") == ""
    (run,) = kept.runs
    assert run.rows[0] == (1, {"version": 1, "reward": 0.1})
    assert [step for step, _ in run.rows] == [1, 2, 3, 4]
    ids = ["0/basic/center#0", "1/basic/center#0", "0/basic/center#1"]
    assert run.samples == [(2, ids), (4, ids)]
    assert run.ok


def test_an_evaluation_stands_under_eval_without_what_is_a_mean_over_nothing(kept, directory):
    follow(directory, range(1, 3), evaluate_at=2)
    expected = {"eval/TAcc": 0.25, "eval/mean_tokens": 20.0, "eval/reward": 1.5, "eval/reward/format": 0.5}
    assert (2, expected) in kept.runs[0].rows


def test_two_evaluations_that_begin_with_one_version_are_both_logged(kept, directory):
    with tracked(config(), directory, TwoPairs(), Console(file=io.StringIO())) as trackers:
        trackers.evaluation("version 3", 3, REPORT)
        trackers.evaluation("after", 3, REPORT)
    assert [step for step, _ in kept.runs[0].rows] == [3, 3]


def test_zero_steps_between_samples_are_no_samples(kept, directory):
    follow(directory, range(1, 5), "trackers.samples_every_steps=0")
    assert kept.runs[0].samples == []


def test_the_run_has_the_name_of_its_directory_and_the_settings_by_key(kept, directory):
    follow(directory, range(1, 2))
    opening = kept.runs[0].opening
    assert (opening.project, opening.name, opening.id) == ("star-r1", "my-run", None)
    assert opening.settings["loop.groups_per_step"] == 16
    assert opening.settings["learner.learning_rate"] == 2e-4
    follow(directory, range(2, 3), "trackers.name=another")
    assert kept.runs[1].opening.name == "another"


def test_a_client_that_fails_from_step_3_on_stops_nothing_and_is_said_at_the_end(kept, directory):
    kept.broken_from = 3
    said = follow(directory, range(1, 5), "trackers.samples_every_steps=0")
    assert [step for step, _ in kept.runs[0].rows] == [1, 2]
    assert "tracker tensorboard lacks 2 of 4 entries (last: ConnectionError: the server is away)" in said
    assert "metrics.jsonl and evaluation.json have all numbers" in said


def test_a_run_that_fails_is_finished_as_failed_and_its_error_is_the_one_raised(kept, directory):
    def fail_after_a_step():
        with tracked(config(), directory, TwoPairs(), Console(file=io.StringIO())) as trackers:
            trackers.row({"step": 1, "reward": 0.0})
            raise RuntimeError("the learner is lost")

    with pytest.raises(RuntimeError, match="the learner is lost"):
        fail_after_a_step()
    assert kept.runs[0].ok is False


def test_a_resumed_run_goes_on_in_its_tracker_and_sends_what_that_lacks_once(kept, directory):
    """Of 3 steps the tracker has 2; the resumed run makes step 3 again, and a fourth."""
    kept.broken_from = 3
    follow(directory, range(1, 4), "trackers.samples_every_steps=0")
    write_rows(directory.metrics, [{"step": step, "reward": step / 10} for step in (1, 2, 3)])
    directory.add_evaluation("before", make_evaluation(REPORT, 0))
    kept.broken_from = sys.maxsize
    follow(directory, range(3, 5), "trackers.samples_every_steps=0")
    again = kept.runs[-1]
    assert again.opening.id == "first"
    assert [(step, "eval/TAcc" in row) for step, row in again.rows] == [(3, False), (0, True), (4, False)]


def test_without_trackers_nothing_is_written_or_said(tmp_path, directory):
    assert follow(directory, range(1, 5), "trackers.use=[]") == ""
    assert list(directory.path.iterdir()) == []


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_missing_client_is_an_error_that_says_how_to_install_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"trackers.use names '{name}'.* pip install 'star-r1\[{name}\]'"):
        check_trackers(TrackersConfig(use=(name,)))


def test_a_tracker_that_is_checked_says_what_it_lacks(kept):
    def check():
        raise ConfigError("nobody is logged in")

    kept.check = check
    with pytest.raises(ConfigError, match="nobody is logged in"):
        check_trackers(TrackersConfig(use=("tensorboard",)))


def test_another_tracker_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigError, match=r"trackers\.use.*comet.*'tensorboard', 'wandb', 'mlflow' or 'trackio'"):
        config('trackers.use=["comet"]')


def test_a_tracker_named_twice_is_refused():
    with pytest.raises(ValidationError, match="names a tracker twice"):
        TrackersConfig(use=("wandb", "wandb"))


def test_trackers_may_change_when_a_run_goes_on(tmp_path):
    class Data:
        identity = "some"

    out = tmp_path / "run"
    out.mkdir()
    open_run_directory(config(), out, "train", resume=False).begin(config(), "train", Data(), PolicyVersion(0))
    changed = open_run_directory(config("trackers.use=[]"), out, "train", resume=True).changed
    assert changed == ("going on with trackers.use = [], which was ['tensorboard']",)
