"""Counting: pictures that show as many objects as their answers say, reproducible, and made by one recipe."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from records.pictures import size
from tasks.counting.config import CountingConfig
from tasks.counting.task import TASK, ask_about
from tasks.tvr.pictures.render import render, to_png
from tasks.tvr.pictures.sample_scenes import sample_objects, sample_places


def config(folder: Path, **changes: Any) -> CountingConfig:
    return CountingConfig(path=folder, **{"train": 6, "test": 3, "size": (48, 36), "spp": 1, "workers": 1} | changes)


def nothing(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("data") / "count"
    TASK.make(config(made), nothing)
    return made


def test_the_data_are_questions_about_one_picture(folder: Path):
    data = TASK.open(config(folder))
    prompts = data.prompts("train")
    assert (len(prompts), len(data.prompts("test"))) == (6, 3)
    assert [size(encoded) for prompt in prompts for encoded in prompt.pictures] == [(48, 36)] * 6
    (message,) = prompts[0].messages
    assert [part.get("text", "#") for part in message["content"]] == ["final : ", "#", " objects ?"]
    assert {prompt.gold.answer for prompt in prompts} <= {"2", "3"}
    assert TASK.check(config(folder), nothing)[1]


def test_an_answer_is_the_number_of_objects_in_the_picture():
    asked = config(Path("unused"), objects=(1, 3))
    row = ask_about(asked, ("test", 5))
    rng = random.Random("0/test/5")  # the same draws by hand
    count = rng.randint(1, 3)
    (scene,) = sample_places(rng, lambda: [sample_objects(rng, count)], [(0, "center")], 32.0)
    assert row["answer"] == str(len(scene)) == str(count)
    assert row["images"] == [{"bytes": to_png(render(scene, "center", (48, 36), 1, rng.getrandbits(31), 32.0))}]


def test_it_is_made_once_and_the_same_wherever_by_however_many(folder: Path, tmp_path: Path):
    told: list[tuple[int, int]] = []
    TASK.make(config(folder), lambda done, total: told.append((done, total)))
    assert told == []
    TASK.make(config(tmp_path / "again", workers=2), lambda done, total: told.append((done, total)))
    assert told[-1] == (9, 9)
    assert TASK.open(config(tmp_path / "again")).identity == TASK.open(config(folder)).identity
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_a_folder_of_another_recipe_is_not_taken_for_this_one(folder: Path):
    TASK.make(config(folder, workers=2), nothing)  # not in the pictures
    with pytest.raises(ValueError, match=r"with objects = \[2, 3\], not objects = \[2, 4\] as asked now; change"):
        TASK.make(config(folder, objects=(2, 4)), nothing)
    assert json.loads((folder / "recipe.json").read_text())["objects"] == [2, 3]


def test_the_rule_is_the_number_by_default():
    assert next(iter(TASK.rules)) == "number"
