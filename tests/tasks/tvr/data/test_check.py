"""A sound data set passes, and every kind of damage is named."""

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from tasks.tvr.data import rendered
from tasks.tvr.data.check import CheckReport, Problem, check, describe
from tasks.tvr.data.config import DataConfig
from tasks.tvr.data.dataset import write_folder
from tasks.tvr.pictures.render import to_png

Row = dict[str, Any]
RENDERED = {"spp": 1}
CONVERTED = {"source": "TRANCE"}


def picture(level: int, size: tuple[int, int] = (16, 12)) -> bytes:
    width, height = size
    noise = np.random.default_rng(level).integers(0, 256, (height, width, 3))
    return to_png(noise.astype(np.uint8))


def row(scene: str = "7", place: float = 0.0) -> Row:
    """Two objects, of which the second becomes small; *place* makes it another scene."""
    common = {"shape": "cube", "size": "large", "material": "metal", "rotation": 0.0}
    return {
        "id": f"{scene}/view/left",
        "setting": "view",
        "view": "left",
        "initial": {"bytes": picture(0)},
        "final": {"bytes": picture(1)},
        "objects": [
            {**common, "color": "red", "position": [1.0, place]},
            {**common, "color": "blue", "position": [-1.0, place]},
        ],
        "transformations": [{"index": 1, "attribute": "size", "value": "small"}],
    }


def change(index: int | None, attribute: str, value: str) -> Row:
    return {"index": index, "attribute": attribute, "value": value}


def written(folder: Path, train: list[Row], recipe: Row = RENDERED, test: list[Row] | None = None) -> Path:
    write_folder(folder, {"train": train, "test": [row("8", 1.0)] if test is None else test}, recipe)
    return folder


def problems(folder: Path) -> list[str]:
    return [str(problem) for problem in check(folder).problems]


def test_a_rendered_data_set_is_sound_and_its_pairs_are_counted(tmp_path):
    config = DataConfig(path=tmp_path / "pairs", train=6, test=3, size=(32, 24), spp=1, workers=1)
    rendered.make(config)
    seen: list[tuple[int, int]] = []
    report = check(config.path, lambda done, total: seen.append((done, total)))
    assert report.problems == []
    assert report.notes == []
    assert seen == [(done, 9) for done in range(1, 10)]
    train, test = report.splits["train"], report.splits["test"]
    assert (train.rows, train.scenes, test.rows, test.scenes) == (6, 6, 3, 3)
    assert train.settings == {"basic": 2, "event": 2, "view": 2}
    assert train.views == {"center": 5, "left": 1}
    assert train.objects.total() == train.changes.total() == 6
    assert train.attributes.total() == sum(number * count for number, count in train.changes.items())
    assert train.sizes == {"32x24": 6}
    assert describe(report)[0] == f"{config.path}: OK, 9 pairs in 2 splits"


def test_the_balance_holds_what_is_in_sight_and_what_can_be_seen(tmp_path):
    twice = row()
    twice["objects"][0]["position"] = [3.1, 0.0]  # out of sight
    twice["transformations"] = [
        change(1, "size", "small"),
        change(1, "size", "medium"),
        change(0, "position", "front-1"),
    ]
    train = check(written(tmp_path / "pairs", [twice], CONVERTED)).splits["train"]
    assert train.objects == {1: 1}
    assert train.changes == {2: 1}
    assert train.attributes == {"size": 1, "position": 1}
    assert train.values == {"size": {"medium": 1}, "position": {"front-1": 1}}


def put(value: Any, *path: str | int) -> Callable[[Row], None]:
    """Put *value* at *path* of a row."""

    def damage(row: Row) -> None:
        place: Any = row
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return damage


def as_basic_with_two_changes(row: Row) -> None:
    row |= {"id": row["id"].replace("view/left", "basic/center"), "setting": "basic", "view": "center"}
    row["transformations"].append(change(0, "color", "gray"))


def as_event_from_the_left(row: Row) -> None:
    row |= {"id": row["id"].replace("view", "event"), "setting": "event"}


def encoded(mode: str, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture(1))).convert(mode).save(buffer, format=file_format)
    return buffer.getvalue()


def flipped(data: bytes) -> bytes:
    """With one bit of the pixels changed, which a PNG decoder may not see."""
    at = data.index(b"IDAT") + 40
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE: list[tuple[str, Callable[[Row], None], str]] = [
    ("id missing", put(None, "id"), "the id is None; it must be <scene>/view/left"),
    ("id without scene", put("/view/left", "id"), "it must be <scene>/view/left"),
    ("id of another view", put("7/view/right", "id"), "the id is '7/view/right'; it must be <scene>/view/left"),
    ("setting unknown", put("sideways", "setting"), "setting is 'sideways'; it must be one of basic, event, view"),
    ("setting missing", put(None, "setting"), "setting is None"),
    ("view unknown", put("above", "view"), "view is 'above'; it must be one of center, left, right"),
    ("view not allowed", as_event_from_the_left, "view is 'left'; only pairs of setting view may leave the center"),
    ("two changes in basic", as_basic_with_two_changes, "it has 2 transformations; a basic pair has exactly one"),
    ("no objects", put([], "objects"), "it has 0 objects; a scene has 1 to 10"),
    ("objects missing", put(None, "objects"), "it has 0 objects"),
    ("eleven objects", lambda row: put(row["objects"][:1] * 11, "objects")(row), "it has 11 objects"),
    ("object empty", put(None, "objects", 0), "object 0"),
    ("color unknown", put("pink", "objects", 1, "color"), "object 1: object color is 'pink'; it must be one of gray"),
    ("shape missing", put(None, "objects", 0, "shape"), "object 0: object shape is None"),
    ("position not finite", put([float("nan"), 0.0], "objects", 1, "position"), "object 1 has position (nan, 0.0)"),
    ("position missing", put(None, "objects", 1, "position"), "object 1 has position"),
    ("rotation infinite", put(float("inf"), "objects", 0, "rotation"), "rotation inf; these must be finite"),
    ("no transformation", put([], "transformations"), "it has no transformation"),
    ("index too large", put(2, "transformations", 0, "index"), "transformation 2.size.small is not possible"),
    ("index negative", put(-1, "transformations", 0, "index"), "-1.size.small is not possible"),
    ("index missing", put(None, "transformations", 0, "index"), "None.size.small is not possible"),
    ("value of another attribute", put("red", "transformations", 0, "value"), "1.size.red is not possible"),
    ("attribute unknown", put("weight", "transformations", 0, "attribute"), "1.weight.small is not possible"),
    ("no change", put("large", "transformations", 0, "value"), "1.size.large changes nothing"),
    (
        "overridden",
        lambda row: row["transformations"].append(change(1, "size", "medium")),
        "1.size.small changes nothing, or another one overrides it",
    ),
    ("picture missing", put(None, "initial"), "the initial picture has no bytes"),
    ("picture empty", put({"bytes": b""}, "final"), "the final picture has no bytes"),
    ("picture truncated", put({"bytes": picture(1)[:-200]}, "final"), "the final picture cannot be decoded"),
    ("picture without its end", put({"bytes": picture(1)[:-12]}, "final"), "the final picture cannot be decoded"),
    ("picture with a wrong bit", put({"bytes": flipped(picture(1))}, "final"), "the final picture cannot be decoded"),
    (
        "truncated JPEG",
        put({"bytes": encoded("RGB", "JPEG")[:-20]}, "final"),
        "the final picture cannot be decoded: image file is truncated",
    ),
    ("no picture", put({"bytes": b"not a picture"}, "initial"), "the initial picture is no picture"),
    *(
        (kind, put({"bytes": encoded("RGB", kind)}, "final"), "the final picture is no picture; it must be a PNG")
        for kind in ("BMP", "TIFF", "WEBP", "EPS")
    ),
    ("with alpha", put({"bytes": encoded("RGBA")}, "initial"), "the initial picture is of mode RGBA; it must be RGB"),
    (
        "other size",
        put({"bytes": picture(1, (12, 16))}, "final"),
        "the initial picture is 16x12 and the final one 12x16; make them equal",
    ),
    ("same picture", put({"bytes": picture(0)}, "final"), "both pictures are the same, though the scene changes"),
    ("everything missing", dict.clear, "setting is None"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[list[Problem]]:
    """The problems of a data set that holds each case of DAMAGE, by case, and of a sound row at the end."""
    rows = []
    for number, (_, damage, _) in enumerate(DAMAGE):
        damaged = row(f"a{number}", float(number))
        damage(damaged)
        rows.append(dict.fromkeys(row()) | damaged)
    rows.append(row("sound", -1.0))
    report = check(written(tmp_path_factory.mktemp("damage") / "pairs", rows, test=[row("b", -2.0)]))
    assert report.splits["train"].rows == len(rows)
    names = [item["id"] or f"row {number}" for number, item in enumerate(rows)]
    assert {problem.id for problem in report.problems} <= set(names)
    return [[problem for problem in report.problems if problem.id == name] for name in names]


@pytest.mark.parametrize("number", range(len(DAMAGE)), ids=[name for name, _, _ in DAMAGE])
def test_damage_in_a_row_is_a_problem_of_that_row(found, number):
    reason = DAMAGE[number][2]
    assert any(reason in problem.reason for problem in found[number]), found[number]
    assert {problem.split for problem in found[number]} == {"train"}


def test_damage_in_other_rows_is_no_problem_of_a_sound_one(found):
    assert found[-1] == []


def test_an_id_must_be_unique(tmp_path):
    folder = written(tmp_path / "pairs", [row(), row()])
    assert problems(folder) == ["train 7/view/left: the id occurs twice, first in split train; ids must be unique"]


def test_a_scene_must_stay_within_one_split(tmp_path):
    other = row("7", 1.0) | {"id": "7/event/center", "setting": "event", "view": "center"}
    assert problems(written(tmp_path / "split", [row()], test=[other])) == [
        "test 7/event/center: scene '7' is in split train too; a scene must stay within one split"
    ]
    assert problems(written(tmp_path / "together", [row(), other], test=[row("8", 2.0)])) == []


def test_another_name_does_not_make_another_scene(tmp_path):
    same, moved = row("8"), row("8", 0.5)
    assert problems(written(tmp_path / "same", [row()], test=[same])) == [
        "test 8/view/left: the same objects stand in the same places in split train; a scene must stay within one split"
    ]
    assert problems(written(tmp_path / "moved", [row()], test=[moved])) == []


def test_pictures_have_one_size_in_a_split(tmp_path):
    odd = row("9", 2.0) | {"initial": {"bytes": picture(0, (8, 8))}, "final": {"bytes": picture(1, (8, 8))}}
    assert problems(written(tmp_path / "pairs", [row(), odd, row("10", 2.5)])) == [
        "train 9/view/left: pictures of 8x8, here first; pairs by size are 16x12: 2, 8x8: 1"
    ]


def test_what_trance_does_twice_or_undoes_is_a_note(tmp_path):
    twice, undone = row("1"), row("2", 1.5)
    twice["transformations"].insert(0, change(1, "size", "medium"))
    undone["transformations"].append(change(1, "size", "large"))
    undone["final"] = undone["initial"]  # nothing changed, so the pictures may be the same
    report = check(written(tmp_path / "pairs", [twice, undone], CONVERTED))
    assert report.problems == []
    assert report.notes == [
        "pairs with a transformation that another one overrides or that changes nothing: 1, first 1/view/left",
        "pairs that end as they began, their transformations undone: 1, first 2/view/left",
    ]
    assert report.splits["train"].changes == {1: 1, 0: 1}


def test_a_missing_recipe_or_split_is_a_note(tmp_path):
    folder = written(tmp_path / "pairs", [row()], test=[])
    (folder / "recipe.json").unlink()
    report = check(folder)
    assert report.problems == []
    assert report.notes == [
        "there is no recipe.json; the pairs are checked as converted ones",
        "there is no split test",
    ]


def test_a_folder_without_a_data_set_is_an_error_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no data set in .*; render one, or correct the path"):
        check(tmp_path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


def scramble_text(path: Path) -> None:
    """Letters that are not UTF-8."""
    overwrite(path, b"7/view/left", b"7/view/\xff\xff\xff\xff")


def scramble_offsets(path: Path) -> None:
    """An id that ends far outside the file."""
    overwrite(path, struct.pack("<ii", 0, len("7/view/left")), struct.pack("<ii", 0, 2**30))


def scramble_schema(path: Path) -> None:
    overwrite(path, b"transformations", b"transformat\xff\xff\xff\xff")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train/data-00000-of-00001.arrow", cut),
        ("train/data-00000-of-00001.arrow", lambda path: path.write_bytes(b"")),
        ("train/data-00000-of-00001.arrow", scramble_text),
        ("train/data-00000-of-00001.arrow", scramble_offsets),
        ("train/data-00000-of-00001.arrow", scramble_schema),
        ("train/state.json", cut),
        ("train/dataset_info.json", cut),
        ("train/data-00000-of-00001.arrow", Path.unlink),
        ("recipe.json", cut),
        ("recipe.json", lambda path: path.write_text("[]")),
        ("dataset_dict.json", cut),
        ("dataset_dict.json", lambda path: path.write_text("{}")),
    ],
)
def test_a_damaged_file_is_a_problem_that_names_it(tmp_path, name, damage):
    folder = written(tmp_path / "pairs", [row()])
    damage(folder / name)
    (problem,) = check(folder).problems
    gone = not (folder / name).exists()
    assert str((folder / name).parent if gone else folder / name) in problem.reason


def test_the_other_splits_are_checked_when_one_is_damaged(tmp_path):
    damaged = row("8", 1.0)
    damaged["view"] = "above"
    folder = written(tmp_path / "pairs", [row()], test=[damaged])
    cut(folder / "train" / "data-00000-of-00001.arrow")
    report = check(folder)
    assert {problem.split for problem in report.problems} == {"train", "test"}
    assert list(report.splits) == ["test"]


def test_columns_must_be_those_of_a_data_set(tmp_path):
    folder = written(tmp_path / "pairs", [row()])
    splits = datasets.load_from_disk(folder)
    splits["train"] = splits["train"].remove_columns("view").add_column("weight", [1.0])
    splits.save_to_disk(tmp_path / "other")
    assert problems(tmp_path / "other") == [
        "train: column 'view' is missing; it must be Value('string') (rows not checked)",
        "train: column 'weight' is Value('float64'); it must be left out (rows not checked)",
    ]


def test_at_most_twenty_problems_are_spelled_out():
    report = CheckReport(folder=Path("pairs"))
    report.problems = [Problem("train", f"{number}/view/left", "broken") for number in range(23)]
    lines = describe(report)
    assert lines[0] == "pairs: 23 problems, 0 pairs in 0 splits"
    assert lines[-2:] == ["problem: train 19/view/left: broken", "and 3 more problems"]
    assert json.dumps(lines).count("problem: ") == 20
