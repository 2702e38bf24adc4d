"""The data set: rendered, loaded, and put in order."""

import io
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from records.samples import Prompt
from tasks.tvr.data import dataset, rendered
from tasks.tvr.data.config import DataConfig
from tasks.tvr.language.scene import apply, difference
from tasks.tvr.task import PairSet


def config(path: Path, **changes) -> DataConfig:
    return DataConfig(**{"path": path, "train": 6, "test": 3, "size": (32, 24), "spp": 1, "workers": 1, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rendered.ensure(config(tmp_path_factory.mktemp("data") / "pairs"))


@pytest.fixture(scope="module")
def train(folder: Path) -> list[Prompt]:
    return list(dataset.load(folder, "train"))


def test_settings_are_equally_common_and_views_take_turns(train):
    assert [prompt.id for prompt in train] == [
        "train-0/basic/center",
        "train-1/event/center",
        "train-2/view/center",
        "train-3/basic/center",
        "train-4/event/center",
        "train-5/view/left",
    ]
    assert Counter(prompt.gold.setting for prompt in train) == {"basic": 2, "event": 2, "view": 2}
    assert [prompt.gold.view for prompt in train] == [prompt.id.split("/")[2] for prompt in train]


def test_every_true_change_changes_a_cell(train):
    for prompt in train:
        gold = prompt.gold
        assert len(difference(gold.scene, apply(gold.scene, gold.transformations))) == len(gold.transformations)
        assert len(gold.transformations) == 1 or gold.setting != "basic"


def test_the_splits_share_no_scene(folder, train):
    test = list(dataset.load(folder, "test"))
    assert len(test) == 3
    assert not {prompt.gold.scene for prompt in train} & {prompt.gold.scene for prompt in test}
    assert not {prompt.id for prompt in train} & {prompt.id for prompt in test}


def test_pictures_come_encoded(train):
    with Image.open(io.BytesIO(train[0].pictures[0])) as picture:
        assert (picture.size, picture.mode) == ((32, 24), "RGB")
    assert train[0].pictures[0] != train[0].pictures[1]


def test_the_prompt_does_not_depend_on_the_answer(train):
    for prompt in train:
        system, user = prompt.messages
        listed = " ; ".join(f"{index} : {item}" for index, item in enumerate(prompt.gold.scene))
        words = [part["text"] for part in user["content"] if part["type"] == "text"]
        assert words == ["initial :", "final :", f"objects : {listed} . what changed ?"]
        assert system == train[0].messages[0]  # the same for all, so nothing of this pair is in it
        assert sum(part["type"] == "image" for part in user["content"]) == 2


def test_a_missing_folder_or_split_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no data set in"):
        dataset.load(tmp_path, "train")
    with pytest.raises(ValueError, match="no split 'validation'; it has train, test"):
        dataset.load(folder, "validation")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objects": (3, 2)}, "3 to 2"),
        ({"objects": (2, 11)}, "10 at most"),
        ({"objects": (1, 2), "changes": (1, 5)}, "at most 4"),
        ({"settings": ("view", "view")}, "once"),
        ({"settings": ("sideways",)}, "sideways"),
        ({"colour": True}, "colour"),
    ],
)
def test_a_wrong_config_is_refused(tmp_path, changes, message):
    with pytest.raises(ValidationError, match=message):
        config(tmp_path, **changes)


def test_rows_that_fail_leave_nothing_behind(tmp_path):
    def rows():
        raise ZeroDivisionError
        yield {}

    with pytest.raises(ZeroDivisionError):
        dataset.write_folder(tmp_path / "pairs", {"test": rows()}, {})
    with pytest.raises(ValueError, match="no row to write"):
        dataset.write_folder(tmp_path / "pairs", {"test": iter(())}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_is_known_by_its_recipe_wherever_it_lies(tmp_path):
    found = []
    for name, recipe in (("a", "{}"), ("b", "{}"), ("c", '{"seed": 1}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset_dict.json").write_text("{}")
        (tmp_path / name / "recipe.json").write_text(recipe)
        found.append(PairSet(tmp_path / name).identity)
    assert found[0] == found[1] != found[2]
