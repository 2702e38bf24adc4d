"""The real client of each tracker, offline: what a run logs can be read back with the tracker's own means."""

import importlib.util
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.config import ConfigError
from orchestrator.run.trackers.samples import ShownSample
from orchestrator.run.trackers.tracker import Opening, Tracker

PICTURE = Image.new("RGB", (20, 6), "red")


def needs(name: str) -> pytest.MarkDecorator:
    """mlflow and trackio ask for an older cachetools and pillow than `deploy/constraints` pin."""
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(
        missing, reason=f"needs pip install 'star-r1[{name}]', in an environment without the pins"
    )


def opening(folder: Path, run_id: str | None = None, lr: float = 0.5) -> Opening:
    settings = {"learner.learning_rate": lr, "device": "cpu"}
    return Opening(project="pairs", name="my-run", id=run_id, folder=folder, settings=settings)


def sample(number: int) -> ShownSample:
    """Only the first has pictures."""
    return ShownSample(
        id=f"0/basic/center#{number}",
        picture=None if number else PICTURE,
        judged="true 0.color.blue",
        reply="<answer> 0.color.blue </answer>",
        reward=5.0,
        terms={"value": 5.0},
        version=3,
    )


def log_a_run(client: types.ModuleType, folder: Path, later: Path | None = None) -> Tracker:
    """Three steps, an evaluation that ends late, samples; stopped after step 2 and opened again, in *later*."""
    first = client.open_run(opening(folder))
    first.log(1, {"reward": 1.0, "reward/format": 0.5})
    first.log(2, {"reward": 2.0, "reward/format": 0.5})
    first.log(1, {"eval/TAcc": 0.25})
    first.log_samples(2, [sample(0), sample(1)])
    first.finish(ok=False)
    again = client.open_run(opening(later or folder, first.id, lr=0.25))
    assert again.id == first.id
    again.log(3, {"reward": 3.0, "reward/format": 0.5})
    again.finish(ok=True)
    return again


def test_tensorboard_has_scalars_pictures_and_texts_in_its_event_files(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    import orchestrator.run.trackers.tensorboard as client

    log_a_run(client, tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0, "images": 0})
    events.Reload()
    assert [(it.step, it.value) for it in events.Scalars("reward")] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert [(it.step, it.value) for it in events.Scalars("eval/TAcc")] == [(1, 0.25)]
    (shown,) = events.Images("samples/0")
    assert (shown.step, shown.width, shown.height) == (2, 20, 6)
    text = events.Tensors("samples/1/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "0/basic/center#1, version 3: reward +5 (value +5)" in text
    assert "settings/text_summary" in events.Tags()["tensors"]


@pytest.fixture
def offline_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    for name, value in {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}.items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    import orchestrator.run.trackers.wandb as client

    yield client
    client.wandb.teardown()


def test_wandb_offline_has_rows_and_pictures_under_one_id(tmp_path, offline_wandb):
    offline_wandb.check()
    (tmp_path / "later").mkdir()  # its folders are named by the second in which they are made
    run = log_a_run(offline_wandb, tmp_path, tmp_path / "later")
    offline_wandb.wandb.teardown()  # its process ends as it does at the end of ours, and its files are whole
    files = [
        next((part / "wandb").glob(f"offline-run-*/run-{run.id}.wandb")) for part in (tmp_path, tmp_path / "later")
    ]
    rows = [row for file in files for row in wandb_history(file)]
    assert [(row["step"], row["reward"]) for row in rows if "reward" in row] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert [(row["step"], row["eval/TAcc"]) for row in rows if "eval/TAcc" in row] == [(1, 0.25)]
    (shown,) = [row for row in rows if "samples.captions" in row]
    assert (shown["step"], shown["samples.captions"]) == (2, [sample(0).caption])
    (picture,) = (tmp_path / "wandb").glob("offline-run-*/files/media/images/samples_*.png")
    assert Image.open(picture).size == PICTURE.size
    (table,) = (tmp_path / "wandb").glob("offline-run-*/files/media/table/replies_*.table.json")
    assert json.loads(table.read_text())["columns"] == ["sample", "version", "judged", "reply", "reward", "value"]


def wandb_history(file: Path) -> list[dict]:
    """The rows in W&B's own file: records of its protocol in blocks of 32 KiB, as LevelDB writes a log."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts, found = file.read_bytes(), 7, b"", []  # behind the head of the file
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts, at = parts + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record.FromString(parts)
            items = record.history.item
            if items:
                names = [item.key or ".".join(item.nested_key) for item in items]
                found.append({name: json.loads(item.value_json) for name, item in zip(names, items, strict=True)})
            parts = b""
    return found


def test_wandb_without_a_key_is_an_error_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    import orchestrator.run.trackers.wandb as client

    with pytest.raises(
        ConfigError, match="no API key; set WANDB_API_KEY, run `wandb login`, or set WANDB_MODE=offline"
    ):
        client.check()
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(ConfigError, match=r"no API key \(.*WANDB_API_KEY"):
        client.check()
    client.wandb.teardown()


@needs("mlflow")
def test_mlflow_has_metrics_settings_and_artifacts_in_its_sqlite_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    import orchestrator.run.trackers.mlflow as client

    client.check()
    run = log_a_run(client, tmp_path)
    mlflow = client.MlflowClient()
    assert [(it.step, it.value) for it in mlflow.get_metric_history(run.id, "reward")] == [(1, 1), (2, 2), (3, 3)]
    assert [(it.step, it.value) for it in mlflow.get_metric_history(run.id, "eval/TAcc")] == [(1, 0.25)]
    found = mlflow.get_run(run.id)
    assert (found.info.run_name, found.info.status) == ("my-run", "FINISHED")
    assert found.data.params["learner.learning_rate"] == "0.5", "as the run began"
    assert any(it.path.endswith(".png") for it in mlflow.list_artifacts(run.id, "images"))
    assert [it.path for it in mlflow.list_artifacts(run.id, "samples")] == ["samples/step-000002.txt"]


@needs("mlflow")
def test_an_address_that_mlflow_does_not_know_is_an_error_before_the_run(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://somewhere")
    import orchestrator.run.trackers.mlflow as client

    with pytest.raises(ConfigError, match=r"gopher.* set MLFLOW_TRACKING_URI"):
        client.check()


@needs("trackio")
def test_trackio_has_rows_and_a_table_with_a_picture_in_its_folder(tmp_path, monkeypatch):
    assert "trackio" not in sys.modules, "it looks at TRACKIO_DIR when it is imported"
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import orchestrator.run.trackers.trackio as client

    client.check()
    run = log_a_run(client, tmp_path)
    from trackio.sqlite_storage import SQLiteStorage

    assert SQLiteStorage.get_runs("pairs") == [run.id]
    rows = SQLiteStorage.get_logs("pairs", run.id)
    assert [(row["step"], row["reward"]) for row in rows if "reward" in row] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert [(row["step"], row["eval/TAcc"]) for row in rows if "eval/TAcc" in row] == [(1, 0.25)]
    (shown,) = [row["samples"]["_value"] for row in rows if "samples" in row]
    assert [it["reply"] for it in shown] == [sample(0).reply] * 2
    (picture,) = (tmp_path / "trackio" / "media").rglob("*.png")
    assert Image.open(picture).size == PICTURE.size


@needs("trackio")
def test_a_space_of_trackio_without_a_token_is_an_error_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/pairs")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    import orchestrator.run.trackers.trackio as client

    monkeypatch.setattr(client, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="no Hugging Face token; set HF_TOKEN"):
        client.check()
