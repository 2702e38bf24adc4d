"""The saved policy is what transformers itself would save, in one file or in several."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForImageTextToText

from learner import saving
from learner.config import LearnerConfig
from learner.policy import load_policy, policy_parameters
from learner.saving import save_policy


class OneRank:
    """What saving needs of an `Engine`, which would need a process group. It notes what is whole at a time."""

    rank = 0

    def __init__(self, model: Any) -> None:
        self.model = model
        self.gathered_bytes: list[int] = []

    def parameters(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        return [(name, each.dtype, tuple(each.shape)) for name, each in self.model.named_parameters()]

    @contextmanager
    def gathered(self, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
        known = policy_parameters(self.model)
        self.gathered_bytes.append(sum(known[name].parameter.nbytes for name in names))
        yield {name: known[name].merged() for name in names}

    def barrier(self) -> None:
        """There is nobody to wait for."""


@pytest.fixture(params=["names of the Hub", "names of the class"])
def engine(request: pytest.FixtureRequest, policy_folder: str, tmp_path: Path) -> OneRank:
    """Of the tiny policy. The Hub's names of weights are others than those of the model that is made of them, and are
    what transformers saves; a folder with the class's own is loaded too.
    """
    folder = tmp_path / "policy"
    shutil.copytree(policy_folder, folder)
    if request.param == "names of the class":
        tensors = dict(load_policy(LearnerConfig(), policy_folder, torch.device("cpu")).named_parameters())
        safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = load_policy(LearnerConfig(), str(folder), torch.device("cpu"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    return OneRank(model)


def content(folder: Path) -> dict[str, torch.Tensor]:
    """Of all weight files, in which no name may be twice."""
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors = safetensors.torch.load_file(file)
        assert not found.keys() & tensors.keys()
        found |= tensors
    return found


@pytest.mark.parametrize(("shard_bytes", "files"), [(1 << 30, 1), (2_000_000, 4)])
def test_what_is_saved_is_what_transformers_would_save(
    engine: OneRank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_bytes: int, files: int
) -> None:
    monkeypatch.setattr(saving, "SHARD_BYTES", shard_bytes)
    save_policy(engine, tmp_path / "saved")
    engine.model.save_pretrained(tmp_path / "expected")
    saved, expected = content(tmp_path / "saved"), content(tmp_path / "expected")
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in expected)
    others = {path.name: path.read_text() for path in (tmp_path / "saved").glob("*.json") if "index" not in path.name}
    assert others == {path.name: path.read_text() for path in (tmp_path / "expected").glob("*.json")}
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) == files
    assert all(path.is_file() for path in (tmp_path / "saved").iterdir())
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    pairs = zip(loaded.named_parameters(), engine.model.named_parameters(), strict=True)
    assert all(name == own_name and torch.equal(part, own) for (name, part), (own_name, own) in pairs)


def test_no_more_than_one_file_is_gathered_at_a_time(
    engine: OneRank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "SHARD_BYTES", 2_000_000)
    save_policy(engine, tmp_path)
    assert max(engine.gathered_bytes) <= 2_000_000
    assert sum(engine.gathered_bytes) == sum(part.nbytes for part in engine.model.parameters())


def test_the_index_names_the_file_of_every_weight(
    engine: OneRank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "SHARD_BYTES", 2_000_000)
    save_policy(engine, tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(part.nbytes for part in engine.model.parameters())
    places = {name: file.name for file in tmp_path.glob("*.safetensors") for name in safetensors.torch.load_file(file)}
    assert index["weight_map"] == places
    assert set(places.values()) == {f"model-0000{number}-of-00004.safetensors" for number in (1, 2, 3, 4)}


def test_what_is_saved_takes_the_place_of_what_was_there(
    engine: OneRank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set()
    for shard_bytes in (1 << 30, 2_000_000, 1 << 30):
        monkeypatch.setattr(saving, "SHARD_BYTES", shard_bytes)
        save_policy(engine, tmp_path)
        names = {path.name for path in tmp_path.glob("model*")}
        assert ("model.safetensors" in names) == (shard_bytes > 2_000_000)
    assert names == {"model.safetensors"}
