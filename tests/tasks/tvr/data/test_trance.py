"""TRANCE as downloaded, turned into our data set."""

import copy
import fcntl
import io
import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from records.samples import Prompt
from tasks.tvr.data.dataset import load
from tasks.tvr.data.trance import Problem, SplitSummary, TranceError, TranceSummary, convert, describe
from tasks.tvr.language.answer import Answer
from tasks.tvr.language.metrics import judge

# Of these, 1 is out of sight: its second coordinate is beyond 20, TRANCE's 3.0 scene units.
OBJECTS = [
    {"color": "yellow", "material": "glass", "shape": "cube", "size": "large", "position": [7, -20]},
    {"color": "gray", "material": "metal", "shape": "cylinder", "size": "small", "position": [-19, 37]},
    {"color": "red", "material": "rubber", "shape": "sphere", "size": "medium", "position": [20, 0]},
    {"color": "cyan", "material": "metal", "shape": "cube", "size": "small", "position": [-7, 13]},
]
VIEWS = {"Camera_Left": "L", "Camera_Right": "R", "Camera_Center": "C"}
COLORS = "gray, red, blue, green, brown, purple, cyan, yellow"

Sample = dict[str, Any]


def sample(idx: int, transformations: list[tuple], after: dict[tuple[int, str], Any], views: str = "LRC") -> Sample:
    """One line of data.jsonl; *after* gives the cells in which the last state differs from `OBJECTS`."""
    final = copy.deepcopy(OBJECTS)
    for (index, attribute), value in after.items():
        final[index][attribute] = value
    images = {camera: f"img_{idx:06d}-fin.{letter}.png" for camera, letter in VIEWS.items() if letter in views}
    return {
        "idx": idx,
        "states": [
            {"objects": copy.deepcopy(OBJECTS), "images": {"Camera_Center": f"img_{idx:06d}-init.C.png"}},
            {"objects": final, "images": images},
        ],
        "transformations": [
            {"obj_idx": index, "attr": attribute, "val": value, "options": [value]}
            for index, attribute, value in transformations
        ],
    }


def one(idx: int = 1, views: str = "LRC") -> Sample:
    return sample(idx, [(0, "color", "blue")], {(0, "color"): "blue"}, views)


def twice(idx: int = 2) -> Sample:
    return sample(idx, [(0, "color", "blue"), (0, "color", "purple")], {(0, "color"): "purple"})


def moved(idx: int = 3) -> Sample:
    """Two steps of ten units along the first coordinate: -7 becomes 13."""
    return sample(idx, [(3, "position", ["behind", 2])], {(3, "position"): [13, 13]})


def moved_out(idx: int = 4) -> Sample:
    changes = [(2, "position", ["behind-left", 1]), (2, "size", "small")]
    return sample(idx, changes, {(2, "position"): [30, -10], (2, "size"): "small"})


def pixels(name: str, channels: int) -> np.ndarray:
    """The picture *name* `[24, 32, channels]`: noise that depends on the name alone."""
    return np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (24, 32, 4), np.uint8)[..., :channels]


def names(samples: Iterable[Sample]) -> list[str]:
    return [name for each in samples for state in each["states"] for name in state["images"].values()]


def write_jsonl(folder: Path, samples: list[Sample], channels: int = 3) -> Path:
    (folder / "image").mkdir(parents=True)
    for name in names(samples):
        Image.fromarray(pixels(name, channels)).save(folder / "image" / name)
    (folder / "data.jsonl").write_text("".join(json.dumps(each) + "\n" for each in samples))
    return folder


def write_hdf5(folder: Path, splits: dict[str, list[Sample]], channels: int = 3) -> Path:
    folder.mkdir(parents=True)
    with h5py.File(folder / "data.h5", "w") as file:
        for split, samples in splits.items():
            for each in samples:
                file[f"{split}/data/{each['idx']}"] = json.dumps(each)
            for name in names(samples):
                file[f"{split}/image/{name}"] = pixels(name, channels)
            file[f"{split}/keys"] = str([str(each["idx"]) for each in samples])
            file[f"{split}/basic_keys"] = "[]"
    return folder


def convert_into(folder: Path, source: Path, **options: Any) -> tuple[TranceSummary, list[Prompt]]:
    """The summary, and the prompts of all splits."""
    summary = convert(source, folder, **options)
    return summary, [prompt for split, part in summary.splits.items() if part.rows for prompt in load(folder, split)]


def ids(prompts: Iterable[Prompt]) -> list[str]:
    return [prompt.id for prompt in prompts]


def decoded(picture: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(picture)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def five(idx: int) -> list[str]:
    return [f"{idx}/basic/center", *four(idx)]


def four(idx: int) -> list[str]:
    return [f"{idx}/{pair}" for pair in ("event/center", "view/center", "view/left", "view/right")]


def test_a_sample_is_basic_with_one_transformation_and_has_a_row_for_each_view(tmp_path):
    summary, prompts = convert_into(tmp_path / "out", write_jsonl(tmp_path / "in", [one(1), twice(2)]))
    assert ids(prompts) == five(1) + four(2)
    assert summary.splits == {"test": SplitSummary(read=2, kept=2, rows=9)}
    for prompt in prompts:
        _, setting, view = prompt.id.split("/")
        assert (prompt.gold.setting, prompt.gold.view) == (setting, view)


def test_each_row_has_its_own_pictures_byte_for_byte(tmp_path):
    source = write_jsonl(tmp_path / "in", [one(1)])
    _, prompts = convert_into(tmp_path / "out", source)
    letters = ["C", "C", "C", "L", "R"]
    for prompt, letter in zip(prompts, letters, strict=True):
        assert prompt.pictures[0] == (source / "image/img_000001-init.C.png").read_bytes()
        assert prompt.pictures[1] == (source / f"image/img_000001-fin.{letter}.png").read_bytes()


def test_places_are_in_scene_units_and_objects_out_of_sight_keep_their_index(tmp_path):
    _, prompts = convert_into(tmp_path / "out", write_jsonl(tmp_path / "in", [one()]))
    scene = prompts[0].gold.scene
    # One unit is 0.15: 7 and -20 are 1.05 and -3.0.
    assert [item.position for item in scene] == [(1.05, -3.0), (-2.85, 5.55), (3.0, 0.0), (-1.05, 1.95)]
    assert {item.rotation for item in scene} == {0.0}
    listed = "0 : large yellow glass cube ; 2 : medium red rubber sphere ; 3 : small cyan metal cube"
    assert prompts[0].messages[1]["content"][-1]["text"] == f"objects : {listed} . what changed ?"


def test_a_recorded_rotation_becomes_degrees(tmp_path):
    turned = one()
    turned["states"][0]["objects"][2]["rotation"] = 1.5707963267948966  # half of pi
    _, prompts = convert_into(tmp_path / "out", write_jsonl(tmp_path / "in", [turned]))
    assert [item.rotation for item in prompts[0].gold.scene] == [0.0, 0.0, 90.0, 0.0]


def test_a_cell_changed_twice_is_kept_as_recorded_and_seen_once(tmp_path):
    _, prompts = convert_into(tmp_path / "out", write_jsonl(tmp_path / "in", [twice()]))
    assert list(map(str, prompts[0].gold.transformations)) == ["0.color.blue", "0.color.purple"]
    assert list(map(str, prompts[0].gold.changes)) == ["0.color.purple"]


def test_intermediate_states_are_not_looked_at(tmp_path):
    stages = one()
    source = write_jsonl(tmp_path / "in", [stages])
    stages["states"].insert(1, {"objects": "any", "images": {"Camera_Center": "absent.png"}})
    (source / "data.jsonl").write_text(json.dumps(stages))
    assert ids(convert_into(tmp_path / "out", source)[1]) == five(1)


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        ("C", ["1/basic/center", "1/event/center", "1/view/center"]),
        ("LR", ["1/view/left", "1/view/right"]),
        ("RC", ["1/basic/center", "1/event/center", "1/view/center", "1/view/right"]),
    ],
)
def test_a_view_that_is_not_there_gives_no_row(tmp_path, views, expected):
    _, prompts = convert_into(tmp_path / "out", write_jsonl(tmp_path / "in", [one(views=views)]))
    assert ids(prompts) == expected


def test_samples_with_a_move_are_left_out_and_counted(tmp_path):
    source = write_jsonl(tmp_path / "in", [one(1), moved(3), moved_out(4)])
    (source / "image/img_000003-init.C.png").unlink()  # what is left out is not damaged
    summary, prompts = convert_into(tmp_path / "out", source)
    assert summary.splits["test"] == SplitSummary(read=3, kept=1, rows=5, with_position=2)
    assert ids(prompts) == five(1)


def test_the_true_answer_is_right_also_when_objects_move_and_leave(tmp_path):
    source = write_jsonl(tmp_path / "in", [one(1), twice(2), moved(3), moved_out(4)])
    summary, prompts = convert_into(tmp_path / "out", source, with_position=True)
    assert summary.splits["test"] == SplitSummary(read=4, kept=4, rows=18)
    assert list(map(str, prompts[9].gold.transformations)) == ["3.position.behind-2"]
    assert list(map(str, prompts[-1].gold.transformations)) == ["2.position.behind-left-1", "2.size.small"]
    for prompt in prompts:
        gold, nothing = prompt.gold, Answer(triplets=(), reasoning="")
        answer = Answer(triplets=gold.transformations, reasoning="")
        assert judge(answer, gold, num_tokens=None).acc
        assert not judge(nothing, gold, num_tokens=None).acc


def test_every_move_leads_from_every_place_to_the_recorded_one(tmp_path):
    ahead, across = {"front": -1, "behind": 1}, {"left": -1, "right": 1}
    directions = [*ahead, *across, *(f"{x}-{y}" for x in ahead for y in across)]
    samples = []
    for place, start in enumerate(range(-20, 21)):
        direction, steps = directions[place % 8], 1 + place // 8 % 2
        along_x = sum(step for word, step in ahead.items() if word in direction.split("-"))
        along_y = sum(step for word, step in across.items() if word in direction.split("-"))
        end = [start + 10 * steps * along_x, -start + 10 * steps * along_y]
        each = sample(place, [(0, "position", [direction, steps])], {(0, "position"): end}, views="C")
        each["states"][0]["objects"][0]["position"] = [start, -start]
        samples.append(each)
    summary, _ = convert_into(tmp_path / "out", write_jsonl(tmp_path / "in", samples), with_position=True)
    assert summary.splits["test"] == SplitSummary(read=41, kept=41, rows=41 * 3)


def test_hdf5_and_jsonl_give_the_same_rows(tmp_path):
    samples = [one(1), twice(2), moved(3)]
    lines = convert_into(tmp_path / "a", write_jsonl(tmp_path / "in", samples), split="train")
    packed = convert_into(tmp_path / "b", write_hdf5(tmp_path / "packed", {"train": samples}))
    assert packed[0] == lines[0]
    for ours, theirs in zip(lines[1], packed[1], strict=True):
        assert (ours.id, ours.gold, ours.messages, ours.gold.view) == (
            theirs.id,
            theirs.gold,
            theirs.messages,
            theirs.gold.view,
        )
        assert (decoded(ours.pictures[0]) == decoded(theirs.pictures[0])).all()
        assert (decoded(ours.pictures[1]) == decoded(theirs.pictures[1])).all()


@pytest.mark.parametrize("kind", ["jsonl", "hdf5"])
def test_transparency_is_dropped(tmp_path, kind):
    if kind == "jsonl":
        write_jsonl(tmp_path / "in", [one()], channels=4)
    else:
        write_hdf5(tmp_path / "in", {"test": [one()]}, channels=4)
    _, prompts = convert_into(tmp_path / "out", tmp_path / "in")
    assert (decoded(prompts[0].pictures[0]) == pixels("img_000001-init.C.png", 3)).all()
    assert (decoded(prompts[0].pictures[1]) == pixels("img_000001-fin.C.png", 3)).all()


def test_hdf5_knows_its_splits(tmp_path):
    source = write_hdf5(tmp_path / "in", {"test": [one(3)], "train": [one(1), twice(2)], "val": [moved(4)]})
    summary, prompts = convert_into(tmp_path / "all", source)
    assert {split: (part.read, part.kept) for split, part in summary.splits.items()} == {
        "train": (2, 2),
        "val": (1, 0),
        "test": (1, 1),
    }
    assert list(summary.splits) == ["train", "val", "test"]
    assert ids(prompts) == five(1) + four(2) + five(3)
    assert ids(load(tmp_path / "all", "test")) == five(3)
    summary, prompts = convert_into(tmp_path / "one", source / "data.h5", split="test")
    assert (list(summary.splits), ids(prompts)) == (["test"], five(3))


def test_an_unknown_split_is_named_with_those_there_are(tmp_path):
    source = write_hdf5(tmp_path / "in", {"train": [one(1)], "test": [one(2)]})
    with pytest.raises(TranceError, match=r"data\.h5 has no split 'dev'; it has train, test"):
        convert(source, tmp_path / "out", split="dev")


def test_the_samples_of_data_jsonl_become_the_split_asked_for(tmp_path):
    source = write_jsonl(tmp_path / "in", [one()])
    assert list(convert(source / "data.jsonl", tmp_path / "a").splits) == ["test"]
    assert list(convert(source / "data.jsonl", tmp_path / "b", split="held_out").splits) == ["held_out"]
    assert ids(load(tmp_path / "b", "held_out")) == five(1)
    with pytest.raises(TranceError, match=r"the split is '\.\./x'; its name must be"):
        convert(source, tmp_path / "c", split="../x")


def test_of_both_files_the_one_that_knows_the_splits_is_read(tmp_path):
    write_hdf5(tmp_path / "in", {"val": [one()]})
    (tmp_path / "in/data.jsonl").write_text("not even JSON")
    assert list(convert(tmp_path / "in", tmp_path / "out").splits) == ["val"]


def test_the_recipe_says_how_and_names_no_folder(tmp_path):
    convert(write_jsonl(tmp_path / "in", [one()]), tmp_path / "out", max_samples=5)
    assert json.loads((tmp_path / "out/recipe.json").read_text()) == {
        "source": "TRANCE",
        "file": "data.jsonl",
        "split": None,
        "max": 5,
        "with_position": False,
    }


def test_max_samples_counts_what_is_kept_in_each_split(tmp_path):
    def broken(idx: int) -> Sample:
        return {**one(idx), "transformations": None}

    train = [broken(1), moved(2), one(3), moved(4), twice(5), one(6)]
    source = write_hdf5(tmp_path / "in", {"train": train, "test": [one(7), one(8), one(9)]})
    summary, prompts = convert_into(tmp_path / "out", source, max_samples=2)
    assert ids(prompts) == five(3) + four(5) + five(7) + five(8)
    assert [part.read for part in summary.splits.values()] == [5, 2]
    with pytest.raises(ValueError, match="max_samples is 0; it must be 1 or more"):
        convert(source, tmp_path / "none", max_samples=0)


@pytest.mark.parametrize("kind", ["jsonl", "hdf5"])
def test_progress_counts_the_samples_read(tmp_path, kind):
    if kind == "jsonl":
        write_jsonl(tmp_path / "in", [one(1), moved(2), one(3)])
        with (tmp_path / "in/data.jsonl").open("a") as file:
            file.write("\n")  # an empty line is no sample
    else:
        write_hdf5(tmp_path / "in", {"train": [one(1), moved(2)], "test": [one(3)]})
    seen: list[tuple[int, int]] = []
    convert(tmp_path / "in", tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_conversion_is_alone_at_its_folder(tmp_path):
    source = write_jsonl(tmp_path / "in", [one()])

    def lock_is_held(done: int, total: int) -> None:
        with (tmp_path / "out.lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    convert(source, tmp_path / "out", progress=lock_is_held)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in", "out"]


def test_a_folder_that_is_there_is_not_touched(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="exists; remove it"):
        convert(tmp_path / "absent", tmp_path / "out")


def test_a_source_without_trance_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither data\.h5 nor data\.jsonl in "):
        convert(tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="absent is missing; give the folder of TRANCE"):
        convert(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "data.zip").write_bytes(b"")
    with pytest.raises(TranceError, match=r"data\.zip is neither a \.h5 nor a \.jsonl file"):
        convert(tmp_path / "data.zip", tmp_path / "out")


def replaced(*path: Any, by: Any) -> Callable[[Sample], None]:
    def change(each: Sample) -> None:
        value: Any = each
        for step in path[:-1]:
            value = value[step]
        value[path[-1]] = by

    return change


def without(*path: Any) -> Callable[[Sample], None]:
    def change(each: Sample) -> None:
        value: Any = each
        for step in path[:-1]:
            value = value[step]
        del value[path[-1]]

    return change


DAMAGES = {
    "no states": (without("states"), "states is missing"),
    "no objects": (without("states", 0, "objects"), "states.0.objects is missing"),
    "no images": (without("states", 1, "images"), "states.1.images is missing"),
    "no transformations": (without("transformations"), "transformations is missing"),
    "no obj_idx": (without("transformations", 0, "obj_idx"), "transformations.0.obj_idx is missing"),
    "no attr": (without("transformations", 0, "attr"), "transformations.0.attr is missing"),
    "no val": (without("transformations", 0, "val"), "transformations.0.val is missing"),
    "no color": (without("states", 0, "objects", 3, "color"), "states.0.objects.3.color is missing"),
    "no position": (without("states", 1, "objects", 0, "position"), "states.1.objects.0.position is missing"),
    "one state": (without("states", 1), "states: List should have at least 2 items, not 1"),
    "a state that is none": (replaced("states", 1, by=None), "states.1: None should be a valid dictionary"),
    "states that are no list": (replaced("states", by={}), "states: {} should be a valid list"),
    "an object that is none": (
        replaced("states", 0, "objects", 2, by="cube"),
        "states.0.objects.2: 'cube' should be a valid dictionary",
    ),
    "no object": (
        replaced("states", 0, "objects", by=[]),
        "states.0.objects: List should have at least 1 item, not 0",
    ),
    "too many objects": (
        replaced("states", 0, "objects", by=OBJECTS * 3),
        "states.0.objects: List should have at most 10 items, not 12",
    ),
    "an unknown color of an object": (
        replaced("states", 0, "objects", 3, "color", by="pink"),
        f"states.0.objects.3.color: 'pink' is not one of {COLORS}",
    ),
    "a color that is no text": (
        replaced("states", 0, "objects", 3, "color", by=["red"]),
        "states.0.objects.3.color: ['red'] should be a valid string",
    ),
    "an unknown size of an object": (
        replaced("states", 1, "objects", 0, "size", by="huge"),
        "states.1.objects.0.size: 'huge' is not one of small, medium, large",
    ),
    "a place between units": (
        replaced("states", 0, "objects", 1, "position", 0, by=1.5),
        "states.0.objects.1.position.0: 1.5 should be a valid integer",
    ),
    "a place off the plane": (
        replaced("states", 0, "objects", 1, "position", 1, by=-(10**400)),
        f"states.0.objects.1.position.1: -{'1' + '0' * 16}...{'0' * 19} should be greater than or equal to -40",
    ),
    "a place of one coordinate": (
        replaced("states", 0, "objects", 1, "position", by=[1]),
        "states.0.objects.1.position: List should have at least 2 items, not 1",
    ),
    "a rotation that is not finite": (
        replaced("states", 0, "objects", 1, "rotation", by=float("nan")),
        "states.0.objects.1.rotation: nan should be a finite number",
    ),
    "fewer objects at last": (without("states", 1, "objects", 3), "states.0 has 4 objects, states.1 has 3"),
    "an unknown camera": (
        replaced("states", 1, "images", "Camera_Top", by="img_000007-fin.T.png"),
        "states.1.images: 'Camera_Top' is not one of Camera_Center, Camera_Left, Camera_Right",
    ),
    "no first picture": (without("states", 0, "images", "Camera_Center"), "states.0.images has no Camera_Center"),
    "no last picture": (replaced("states", 1, "images", by={}), "states.1.images has no picture"),
    "a missing picture": (
        replaced("states", 1, "images", "Camera_Left", by="absent.png"),
        "image/absent.png is missing",
    ),
    "a picture elsewhere": (
        replaced("states", 1, "images", "Camera_Left", by="../image/img_000007-fin.L.png"),
        "states.1.images.Camera_Left: '../image/img...007-fin.L.png' is not a plain file name",
    ),
    "a picture without a name": (
        replaced("states", 1, "images", "Camera_Left", by=3),
        "states.1.images.Camera_Left: 3 should be a valid string",
    ),
    "a transformation that is none": (
        replaced("transformations", 0, by=["color"]),
        "transformations.0: ['color'] should be a valid dictionary",
    ),
    "an unknown attribute": (
        replaced("transformations", 0, "attr", by="weight"),
        "transformations.0.attr: 'weight' is not one of color, shape, size, material, position",
    ),
    "an unknown value": (
        replaced("transformations", 0, "val", by="large"),
        f"transformations.0.val: 'large' is not one of {COLORS}",
    ),
    "a value that is no text": (
        replaced("transformations", 0, "val", by={"a": 1}),
        f"transformations.0.val: {{'a': 1}} is not one of {COLORS}",
    ),
    "an index that is a text": (
        replaced("transformations", 0, "obj_idx", by="0"),
        "transformations.0.obj_idx: '0' should be a valid integer",
    ),
    "an index that is a bool": (
        replaced("transformations", 0, "obj_idx", by=False),
        "transformations.0.obj_idx: False should be a valid integer",
    ),
    "an index out of range": (
        replaced("transformations", 0, "obj_idx", by=4),
        "transformations.0.obj_idx: 4 is not the index of one of 4 objects",
    ),
    "a negative index": (
        replaced("transformations", 0, "obj_idx", by=-1),
        "transformations.0.obj_idx: -1 is not the index of one of 4 objects",
    ),
    "another last color": (
        replaced("transformations", 0, "val", by="green"),
        "the transformations make the color of object 0 green, states.1 has blue",
    ),
    "a change that is not recorded": (
        replaced("states", 1, "objects", 2, "shape", by="cube"),
        "the transformations make the shape of object 2 sphere, states.1 has cube",
    ),
    "a move that is not recorded": (
        replaced("states", 1, "objects", 3, "position", by=[-7, 14]),
        "the transformations make the position of object 3 (-1.05, 1.95), states.1 has (-1.05, 2.1)",
    ),
    "the same idx": (replaced("idx", by=1), "an earlier sample has the same idx"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_sample_is_reported_and_the_rest_kept(tmp_path, damage):
    change, reason = DAMAGES[damage]
    samples = [one(1), one(7), twice(8)]
    source = write_jsonl(tmp_path / "in", samples)
    change(samples[1])
    (source / "data.jsonl").write_text("".join(json.dumps(each) + "\n" for each in samples))
    idx = str(samples[1]["idx"])

    summary, prompts = convert_into(tmp_path / "out", source)
    assert summary.splits["test"].problems == [Problem(idx=idx, reason=reason)]
    assert ids(prompts) == five(1) + four(8)

    with pytest.raises(TranceError) as raised:
        convert(source, tmp_path / "strict", strict=True)
    assert str(raised.value) == f"data.jsonl, test {idx}: {reason}"
    assert not (tmp_path / "strict").exists()


MOVE = (
    "is not [direction, 1 or 2] with a direction of "
    "front, behind, left, right, front-left, front-right, behind-left, behind-right"
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (["up", 2], "['up', 2]"),
        (["behind", 3], "['behind', 3]"),
        (["behind", True], "['behind', True]"),
        (["behind", "2"], "['behind', '2']"),
        ("behind-2", "'behind-2'"),
        (None, "None"),
    ],
)
def test_an_unknown_move_is_damage_also_where_moves_are_left_out(tmp_path, value, shown):
    bad = moved(3)
    bad["transformations"][0]["val"] = value
    summary, _ = convert_into(tmp_path / "out", write_jsonl(tmp_path / "in", [one(1), bad]))
    assert summary.splits["test"].problems == [Problem(idx="3", reason=f"transformations.0.val: {shown} {MOVE}")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "it is not JSON: Expecting property name enclosed in double quotes at character "),
        (b"\xff\xff", "it is not JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"[" * 100_000, "it is not JSON: maximum recursion depth exceeded while decoding a JSON array from a unicode"),
        (b'{"idx": 1' + b"0" * 5000 + b"}", "it is not JSON: Exceeds the limit (4300 digits) for integer string"),
        (b"[]", "the sample: [] should be a valid dictionary"),
        (b"{}", "idx is missing"),
        (json.dumps({**one(), "idx": "2"}).encode(), "idx: '2' should be a valid integer"),
        (json.dumps({**one(), "idx": True}).encode(), "idx: True should be a valid integer"),
        (json.dumps({**one(), "idx": -2}).encode(), "idx: -2 should be greater than or equal to 0"),
    ],
)
def test_a_line_without_a_readable_idx_is_named_by_its_number(tmp_path, line, reason):
    source = write_jsonl(tmp_path / "in", [one(1)])
    (source / "data.jsonl").write_bytes(json.dumps(one(1)).encode() + b"\n\n" + line + b"\n")
    summary, _ = convert_into(tmp_path / "out", source)
    assert summary.splits["test"].read == 2  # an empty line is no sample
    (problem,) = summary.splits["test"].problems
    assert problem.idx == "line 3"
    assert problem.reason.startswith(reason)


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    """One wrong bit in the checksum of the compressed pixels."""
    place = data.index(b"IEND") - 9
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def grey(data: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("L").save(buffer, format="PNG")
    return buffer.getvalue()


def bitmap(data: bytes) -> bytes:
    """A sound picture, of a kind that TRANCE has none of."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).save(buffer, format="BMP")
    return buffer.getvalue()


def enormous(data: bytes) -> bytes:
    """With another size in the header, and its checksum right."""
    header = b"IHDR" + (9_000).to_bytes(4, "big") * 2 + data[24:29]
    return data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]


@pytest.mark.parametrize("which", ["init.C", "fin.C", "fin.R"])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (truncated, "cannot be decoded: .*"),
        (flipped, "cannot be decoded: broken PNG file .*"),
        (lambda _: b"", "is no picture; it must be a PNG or JPEG file"),
        (lambda data: b"GIF89a" + data, "is no picture; it must be a PNG or JPEG file"),
        (bitmap, "is no picture; it must be a PNG or JPEG file"),
        (enormous, "cannot be decoded: it has 9000x9000 pixels, more than 16777216; make it smaller"),
        (grey, "has mode L; it must be RGB or RGBA"),
    ],
)
def test_one_broken_picture_leaves_out_its_sample(tmp_path, which, spoil, reason):
    source = write_jsonl(tmp_path / "in", [one(1), one(7)])
    file = source / f"image/img_000007-{which}.png"
    file.write_bytes(spoil(file.read_bytes()))
    summary, prompts = convert_into(tmp_path / "out", source)
    (problem,) = summary.splits["test"].problems
    assert problem.idx == "7"
    assert re.fullmatch(f"image/{re.escape(file.name)} {reason}", problem.reason)
    assert ids(prompts) == five(1)


def test_a_picture_that_is_a_folder_leaves_out_its_sample(tmp_path):
    source = write_jsonl(tmp_path / "in", [one(1), one(7)])
    (source / "image/img_000007-fin.L.png").unlink()
    (source / "image/img_000007-fin.L.png").mkdir()
    summary, _ = convert_into(tmp_path / "out", source)
    reason = "image/img_000007-fin.L.png cannot be read: Is a directory"
    assert summary.splits["test"].problems == [Problem(idx="7", reason=reason)]


@pytest.mark.parametrize("target", ["secret.png", "/proc/self/mem"])
def test_a_link_out_of_the_folder_is_not_followed(tmp_path, target):
    source = write_jsonl(tmp_path / "in", [one(1), one(7)])
    Image.fromarray(pixels("secret", 3)).save(tmp_path / "secret.png")
    link = source / "image/img_000007-fin.L.png"
    link.unlink()
    link.symlink_to(tmp_path / target)
    summary, prompts = convert_into(tmp_path / "out", source)
    reason = "image/img_000007-fin.L.png is a link to a file elsewhere; only what lies in image/ is read"
    assert summary.splits["test"].problems == [Problem(idx="7", reason=reason)]
    assert ids(prompts) == five(1)


def test_links_within_the_folder_and_a_folder_that_is_one_are_followed(tmp_path):
    source = write_jsonl(tmp_path / "in", [one(1)])
    (source / "image").rename(tmp_path / "pictures")
    (source / "image").symlink_to(tmp_path / "pictures")
    (tmp_path / "pictures/img_000001-fin.L.png").unlink()
    (tmp_path / "pictures/img_000001-fin.L.png").symlink_to("img_000001-fin.C.png")
    assert ids(convert_into(tmp_path / "out", source)[1]) == five(1)


def test_a_link_that_leads_to_itself_leaves_out_its_sample(tmp_path):
    source = write_jsonl(tmp_path / "in", [one(1), one(7)])
    link = source / "image/img_000007-fin.L.png"
    link.unlink()
    link.symlink_to(link)
    (problem,) = convert_into(tmp_path / "out", source)[0].splits["test"].problems
    assert problem.reason == "image/img_000007-fin.L.png cannot be read: Too many levels of symbolic links"


def set_keys(text: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["test/keys"]
        file["test/keys"] = text

    return change


def set_item(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        if value is not None:
            file[name] = value

    return change


def set_date(name: str, space: h5py.h5s.SpaceID) -> Callable[[h5py.File], None]:
    """HDF5 knows dates, numpy does not."""

    def change(file: h5py.File) -> None:
        del file[name]
        h5py.h5d.create(file.id, name.encode(), h5py.h5t.UNIX_D32LE, space)

    return change


def set_external(name: str, kind: str) -> Callable[[h5py.File], None]:
    """What stands under *name* is moved to other files of this machine, and only named here."""

    def change(file: h5py.File) -> None:
        stored = file[name][()]
        del file[name]
        folder = Path(file.filename).parent
        if kind == "pixels":
            (folder / "pixels").write_bytes(stored.tobytes())
            parts = [(folder / "pixels", 0, stored.nbytes)]
            file.create_dataset(name, shape=stored.shape, dtype=stored.dtype, external=parts)
            return
        with h5py.File(folder / "other.h5", "w") as other:
            other["x"] = stored
        if kind == "link":
            file[name] = h5py.ExternalLink("other.h5", "/x")
            return
        layout = h5py.VirtualLayout(stored.shape, stored.dtype)
        layout[...] = h5py.VirtualSource(folder / "other.h5", "x", shape=stored.shape)
        file.create_virtual_dataset(name, layout)

    return change


def set_huge(file: h5py.File) -> None:
    """75 MB, of which nothing was ever written."""
    del file[f"test/{INIT}"]
    file.create_dataset(f"test/{INIT}", (5000, 5000, 3), np.uint8, chunks=(1000, 1000, 3))


INIT = "image/img_000007-init.C.png"
LINK = "is a link to elsewhere; only what lies in the file itself is read"
ELSEWHERE = "keeps its content in other files; only what lies in the file itself is read"
WRONG_ARRAY = "it must be uint8 (height, width, 3 or 4 channels)"
NO_TEXT = "there is no text '7' in the group /test/data"
NO_DATE = "cannot be read: No NumPy equivalent for TypeTimeID exists"
HDF5_DAMAGES = {
    "a key without data": (set_item("test/data/7", None), "7", NO_TEXT),
    "data that is a number": (set_item("test/data/7", 5), "7", NO_TEXT),
    "data that is a list": (set_item("test/data/7", ["{}"]), "7", NO_TEXT),
    "data that is a date": (set_date("test/data/7", h5py.h5s.create(h5py.h5s.SCALAR)), "7", f"7 {NO_DATE}"),
    "a picture that is a date": (
        set_date(f"test/{INIT}", h5py.h5s.create_simple((24, 32, 3))),
        "7",
        f"{INIT} {NO_DATE}",
    ),
    "data that is not JSON": (
        set_item("test/data/7", "{"),
        "7",
        "it is not JSON: Expecting property name enclosed in double quotes at character 1",
    ),
    "data without an idx": (set_item("test/data/7", "{}"), "7", "idx is missing"),
    "data of another key": (set_item("test/data/7", json.dumps(one(9))), "7", "its idx is 9; it must be the key"),
    "a key twice": (set_keys("['1', '7', '7']"), "7", "an earlier sample has the same idx"),
    "a key that leads elsewhere": (
        set_keys("['1', '7', '/test/data/7']"),
        "/test/data/7",
        "the key is not a plain name",
    ),
    "a missing picture": (set_item(f"test/{INIT}", None), "7", f"{INIT} is missing"),
    "a picture that is a text": (set_item(f"test/{INIT}", "RGB"), "7", f"{INIT} is object (); {WRONG_ARRAY}"),
    "a flat picture": (
        set_item(f"test/{INIT}", np.zeros((24, 32), np.uint8)),
        "7",
        f"{INIT} is uint8 (24, 32); {WRONG_ARRAY}",
    ),
    "a picture of two channels": (
        set_item(f"test/{INIT}", np.zeros((24, 32, 2), np.uint8)),
        "7",
        f"{INIT} is uint8 (24, 32, 2); {WRONG_ARRAY}",
    ),
    "a picture without pixels": (
        set_item(f"test/{INIT}", np.zeros((0, 32, 3), np.uint8)),
        "7",
        f"{INIT} is uint8 (0, 32, 3); {WRONG_ARRAY}",
    ),
    "a picture of floats": (
        set_item(f"test/{INIT}", np.zeros((24, 32, 3), np.float32)),
        "7",
        f"{INIT} is float32 (24, 32, 3); {WRONG_ARRAY}",
    ),
    "data behind a link to another file": (set_external("test/data/7", "link"), "7", f"/test/data/7 {LINK}"),
    "a picture behind a link to another file": (set_external(f"test/{INIT}", "link"), "7", f"/test/{INIT} {LINK}"),
    "a picture behind a soft link": (
        set_item(f"test/{INIT}", h5py.SoftLink("/test/image/img_000001-init.C.png")),
        "7",
        f"/test/{INIT} {LINK}",
    ),
    "a picture in another file": (set_external(f"test/{INIT}", "pixels"), "7", f"/test/{INIT} {ELSEWHERE}"),
    "a virtual picture": (set_external(f"test/{INIT}", "virtual"), "7", f"/test/{INIT} {ELSEWHERE}"),
    "a picture too large to be one": (
        set_huge,
        "7",
        f"{INIT} cannot be read: it has 5000x5000 pixels, more than 16777216; make it smaller",
    ),
    "a picture that is nothing": (
        set_item(f"test/{INIT}", h5py.Empty("uint8")),
        "7",
        f"{INIT} is uint8 None; {WRONG_ARRAY}",
    ),
}


@pytest.mark.parametrize("damage", HDF5_DAMAGES)
def test_a_damaged_sample_in_hdf5_is_reported_and_the_rest_kept(tmp_path, damage):
    change, idx, reason = HDF5_DAMAGES[damage]
    source = write_hdf5(tmp_path / "in", {"test": [one(1), one(7)]})
    with h5py.File(source / "data.h5", "a") as file:
        change(file)
    summary, prompts = convert_into(tmp_path / "out", source)
    assert summary.splits["test"].problems == [Problem(idx=idx, reason=reason)]
    assert ids(prompts)[:5] == five(1)
    with pytest.raises(TranceError) as raised:
        convert(source, tmp_path / "strict", strict=True)
    assert str(raised.value) == f"data.h5, test {idx}: {reason}"
    assert not (tmp_path / "strict").exists()


def test_pixels_that_hdf5_cannot_unpack_leave_out_their_sample(tmp_path):
    source = write_hdf5(tmp_path / "in", {"test": [one(1), one(7)]})
    with h5py.File(source / "data.h5", "a") as file:
        del file[f"test/{INIT}"]
        stored = file.create_dataset(f"test/{INIT}", data=pixels("x", 3), chunks=(24, 32, 3), compression="gzip")
        offset = stored.id.get_chunk_info(0).byte_offset
    with (source / "data.h5").open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff" * 100)
    summary, prompts = convert_into(tmp_path / "out", source)
    (problem,) = summary.splits["test"].problems
    assert problem.idx == "7"
    assert problem.reason.startswith(f"{INIT} cannot be read: ")
    assert ids(prompts) == five(1)


@pytest.mark.parametrize("keys", ["['1', '7']", '["1", "7"]', b"['1', '7']", np.bytes_(b"['1', '7']")])
def test_keys_are_the_text_of_a_list_in_any_encoding(tmp_path, keys):
    source = write_hdf5(tmp_path / "in", {"test": [one(1), one(7)]})
    with h5py.File(source / "data.h5", "a") as file:
        set_keys(keys)(file)
        set_item("test/data/7", json.dumps(one(7)).encode())(file)
    assert ids(convert_into(tmp_path / "out", source)[1]) == five(1) + five(7)


NOT_A_LIST = "test/keys is not the text of a list of strings; download it again"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_item("test/keys", None), "test/keys cannot be read: there is no text 'keys' in the group /test; download"),
        (set_keys(7), "test/keys cannot be read: there is no text 'keys' in the group /test; download"),
        (set_keys("'17'"), NOT_A_LIST),
        (set_keys("[1, 7]"), NOT_A_LIST),
        (set_keys("[open('keys')]"), "test/keys cannot be read: malformed node"),
        (set_keys("['1', "), "test/keys cannot be read: '[' was never closed"),
        (set_keys("[" * 5000), "test/keys cannot be read: too many nested parentheses"),
        (set_keys(b"['\xff']"), "test/keys cannot be read: 'utf-8' codec can't decode"),
        (set_item("test/image", None), "has no group test/image"),
        (set_item("test/data", "{}"), "has no group test/data"),
        (set_item("test", None), "has none of the groups train, val, test"),
        (set_item("train", h5py.ExternalLink("other.h5", "/")), "/train is a link to elsewhere; only what lies in the"),
        (
            set_item("test/data", h5py.SoftLink("/test/image")),
            "/test/data is a link to elsewhere; only what lies in the",
        ),
        (
            set_item("test/keys", h5py.SoftLink("/test/data/1")),
            "/test/keys is a link to elsewhere; only what lies in the",
        ),
    ],
)
def test_a_damaged_hdf5_file_is_an_error(tmp_path, change, message):
    source = write_hdf5(tmp_path / "in", {"test": [one(1), one(7)]})
    with h5py.File(source / "data.h5", "a") as file:
        change(file)
    with pytest.raises(TranceError) as raised:
        convert(source, tmp_path / "out")
    assert str(raised.value).startswith(str(source / "data.h5"))
    assert message in str(raised.value)


def test_a_file_that_is_not_hdf5_is_an_error(tmp_path):
    (tmp_path / "data.h5").write_bytes(b"PK")
    with pytest.raises(TranceError, match=r"data\.h5 cannot be read as HDF5: "):
        convert(tmp_path, tmp_path / "out")


def test_when_nothing_is_left_the_error_says_why(tmp_path):
    source = write_jsonl(tmp_path / "in", [])
    samples = [moved(3), {**one(7), "states": 5}, {**one(8), "states": 6}]
    (source / "data.jsonl").write_text("\n".join(map(json.dumps, samples)))
    with pytest.raises(TranceError) as raised:
        convert(source, tmp_path / "out")
    assert str(raised.value) == (
        f"nothing is left of {source / 'data.jsonl'}: 3 samples read, 1 left out for a change of position, 2 damaged; "
        "the first: 7: states: 5 should be a valid list"
    )
    assert not (tmp_path / "out").exists()
    (source / "data.jsonl").write_text("\n")
    with pytest.raises(TranceError, match=r"0 samples read, 0 left out for a change of position, 0 damaged$"):
        convert(source, tmp_path / "out")


def test_the_summary_is_told_in_few_lines():
    problems = [Problem(idx=str(idx), reason="states is missing") for idx in range(25)]
    summary = TranceSummary(
        splits={
            "train": SplitSummary(read=9, kept=3, rows=13, with_position=5, problems=problems[:1]),
            "test": SplitSummary(read=24, problems=problems[1:]),
        }
    )
    lines = describe(summary)
    assert lines[:4] == [
        "train: 9 samples read, 3 kept, 13 rows; left out: 5 with a change of position, 1 damaged",
        "test: 24 samples read, 0 kept, 0 rows; left out: 0 with a change of position, 24 damaged",
        "  train 0: states is missing",
        "  test 1: states is missing",
    ]
    assert lines[-2:] == ["  test 19: states is missing", "  and 5 more"]
    assert len(lines) == 2 + 20 + 1


def paths(value: Any, path: tuple = ()) -> Iterable[tuple]:
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from paths(value[key], (*path, key))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("color", "images", "Camera_Left", "\ud800")), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("trance") / "in", [moved_out(4)])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_json_whatever_makes_it_crash(source, data):
    each = moved_out(4)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(sorted(paths(each), key=str)))
        replaced(*path, by=data.draw(JSON))(each)
    (source / "data.jsonl").write_text(json.dumps(each))
    error = ""
    try:
        convert(source, source / "out", with_position=True)
        shutil.rmtree(source / "out")
    except TranceError as raised:
        error = str(raised)
    assert error.isprintable()
    assert not error or "1 samples read, 0 left out for a change of position, 1 damaged; the first: " in error
