"""The page shows every pair as it is, and marks stand where the objects are."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.tvr.data.dataset import write_folder
from tasks.tvr.data.show import object_box, write_page
from tasks.tvr.language.scene import SHAPES, VIEWS, SceneObject
from tasks.tvr.pictures.render import FIELD_OF_VIEW_DEG, RENDERER, render, to_png

Row = dict[str, Any]
Node = tuple[str, dict[str, str | None]]
RENDERED = {"spp": 1, "renderer": RENDERER, "field_of_view": FIELD_OF_VIEW_DEG}
CONVERTED = {"source": "TRANCE"}
VOID = {"img", "input", "meta"}


class Page(HTMLParser):
    """The elements of a page with their texts; a tag that is not closed in its turn is an error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[Node] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len(dict(attributes)) == len(attributes), (tag, attributes)
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def all(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        """The attributes of every *tag* whose class has the word *kind*."""
        found = [attributes for name, attributes in self.elements if name == tag]
        return [attributes for attributes in found if not kind or kind in (attributes.get("class") or "").split()]


def picture(level: int) -> bytes:
    return to_png(np.full((12, 16, 3), level, dtype=np.uint8))


def row(number: int, setting: str = "basic", view: str = "center", changes: str = "0.size.small", **other: Any) -> Row:
    """Two objects with the *changes*; the pictures are plain and differ from row to row."""
    common = {"shape": "cube", "material": "metal", "rotation": 0.0}
    triplets = [text.split(".") for text in changes.split()]
    return {
        "id": f"{number}/{setting}/{view}",
        "setting": setting,
        "view": view,
        "initial": {"bytes": picture(2 * number)},
        "final": {"bytes": picture(2 * number + 1)},
        "objects": [
            {**common, "color": "red", "size": "large", "position": [1.0, 0.0]},
            {**common, "color": "cyan", "size": "medium", "position": [-1.0, 0.1 * number]},
        ],
        "transformations": [
            {"index": int(index), "attribute": name, "value": value} for index, name, value in triplets
        ],
        **other,
    }


def shown(
    tmp_path: Path, train: list[Row], test: list[Row] | None = None, recipe: Row = RENDERED, **options: Any
) -> Page:
    write_folder(tmp_path / "pairs", {"train": train, "test": test or []}, recipe)
    write_page(tmp_path / "pairs", tmp_path / "page.html", **options)
    return Page(tmp_path / "page.html")


def ids(page: Page) -> list[str]:
    return [text for text in page.texts if re.fullmatch(r".+/(basic|event|view)/(center|left|right)", text)]


def test_the_page_has_every_pair_with_its_pictures_and_its_changes_in_words(tmp_path):
    rows = [row(0), row(1, "event", changes="0.size.small 1.color.gray"), row(2, "view", "left", "1.shape.sphere")]
    page = shown(tmp_path, rows, [row(3, "view", "right", "0.material.glass")])
    assert ids(page) == ["0/basic/center", "1/event/center", "2/view/left", "3/view/right"]
    for words in (
        "0 size: large → small",
        "1 color: cyan → gray",
        "1 shape: cube → sphere",
        "0 material: metal → glass",
        "large red metal cube",
        "medium cyan metal cube",
    ):
        assert words in page.texts
    sources = [image["src"] for image in page.all("img")]
    wanted = [item[which]["bytes"] for item in [*rows, row(3)] for which in ("initial", "final")]
    assert sources == [f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in wanted]


def test_the_page_needs_nothing_from_outside(tmp_path):
    page = shown(tmp_path, [row(0)])
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object")
        for name, value in attributes.items():
            assert name not in ("src", "href", "srcset", "xlink:href") or (value or "").startswith(("data:", "#"))
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "http" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_the_same_data_set_gives_the_same_page_and_an_old_page_is_replaced(tmp_path):
    shown(tmp_path, [row(0), row(1, "event")])
    first = (tmp_path / "page.html").read_bytes()
    (tmp_path / "page.html").write_text("old")
    assert write_page(tmp_path / "pairs", tmp_path / "page.html") == 2
    assert (tmp_path / "page.html").read_bytes() == first
    assert sorted(file.name for file in tmp_path.iterdir()) == ["page.html", "pairs"]


def test_text_of_the_data_set_is_not_markup(tmp_path):
    scene = "<img onerror='alert(1)'>&\""
    page = shown(tmp_path, [row(0) | {"id": f"{scene}/basic/center"}])
    assert f"{scene}/basic/center" in page.texts
    assert len(page.all("img")) == 2
    assert not any("onerror" in attributes for _, attributes in page.elements)


def test_groups_and_splits_take_turns_until_the_page_is_full(tmp_path):
    train = [row(number) for number in range(4)] + [row(9, "view", "left")]
    test = [row(number) for number in range(4, 8)]
    page = shown(tmp_path, train, test, max_pairs=5)
    # In turn: 0 (train), 9, then basic alone: 4 (test), 1 (train), 5 (test).
    assert ids(page) == ["0/basic/center", "4/basic/center", "1/basic/center", "5/basic/center", "9/view/left"]
    assert "4 of 8" in page.texts


def test_bars_count_every_pair_of_a_split_with_the_longest_one_full(tmp_path):
    page = shown(tmp_path, [row(0), row(1), row(2), row(3, "event", changes="0.size.small 1.size.small")], max_pairs=1)
    assert "4 pairs of 4 scenes" in page.texts
    # setting: basic 3, event 1; view: center 4; objects: 2 in 4; changes: 1 in 3, 2 in 1; attribute: size 5.
    widths = [str(bar["style"]) for bar in page.all("span", "bar")]
    assert widths == [f"width: {width}%" for width in (100.0, 33.3, 100.0, 100.0, 100.0, 33.3, 100.0)]


def test_one_split_is_shown_by_itself(tmp_path):
    page = shown(tmp_path, [row(0)], [row(1)], split="test")
    assert ids(page) == ["1/basic/center"]
    assert "train" not in page.texts


def test_changed_objects_get_boxes_and_the_others_their_number(tmp_path):
    page = shown(tmp_path, [row(0)])
    assert len(page.all("rect", "mark")) == 2  # object 0, in both pictures
    assert len(page.all("svg")) == 2
    assert [text for text in page.texts if text in ("0 large", "0 small")] == ["0 large", "0 small"]
    assert len(page.all("text", "index")) == 2  # object 1, in both pictures
    initial, final = (float(str(mark["width"])) for mark in page.all("rect", "mark"))
    assert final < initial / 2  # radius 0.3 instead of 0.9


@pytest.mark.parametrize("recipe", [CONVERTED, {**RENDERED, "renderer": RENDERER - 1}])
def test_pictures_of_unknown_cameras_have_no_marks(tmp_path, recipe):
    page = shown(tmp_path, [row(0)], recipe=recipe)
    assert page.all("svg") == []
    assert "0 size: large → small" in page.texts
    assert "No marks: where the cameras stood is not known." in page.texts


def test_moves_and_objects_out_of_sight_of_trance_are_told_in_words(tmp_path):
    moved = row(0, "event", changes="0.position.behind-2 1.color.red 1.color.gray")
    moved["objects"][0]["position"] = [2.0, 0.0]
    moved["objects"].append({**moved["objects"][1], "position": [4.5, 0.0]})
    page = shown(tmp_path, [moved], recipe=CONVERTED)
    assert "0 position: behind-2, out of sight" in page.texts
    assert "1 color: cyan → gray" in page.texts
    assert "also made, and not to be seen: 1.color.red" in page.texts
    assert "medium cyan metal cube, out of sight" in page.texts
    assert len(page.all("li", "unseen")) == 1


def red_pixels(item: SceneObject, view: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the plainly red pixels of a small picture of *item* alone."""
    r, g, b = (render((item,), view, (96, 72), 4, seed=0)[..., channel].astype(int) for channel in range(3))
    rows, columns = np.nonzero((r > 60) & (r > 2 * g) & (r > 2 * b))
    return rows, columns


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("view", VIEWS)
def test_the_box_of_an_object_fits_it_to_the_pixel(view, shape):
    item = SceneObject(color="red", shape=shape, size="large", material="rubber", position=(1.2, -0.6), rotation=20.0)
    rows, columns = red_pixels(item, view)
    seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert object_box(item, view, (96, 72), FIELD_OF_VIEW_DEG) == pytest.approx(seen, abs=1.0)


def test_labels_stay_within_the_picture_and_apart(tmp_path):
    near = row(0, "event", changes="0.size.small 0.color.blue 0.shape.sphere 1.size.small 1.color.blue")
    near["objects"][0]["position"], near["objects"][1]["position"] = [-2.5, 2.9], [-1.5, 2.9]
    page = shown(tmp_path, [near])
    labels = page.all("text", "label")
    assert len(labels) == 4
    assert all(0 < float(str(label[axis])) < size for label in labels for axis, size in (("x", 16), ("y", 12)))
    first, second = (float(str(label["y"])) for label in labels[:2])
    assert abs(first - second) >= float(str(labels[0]["font-size"]))


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ({"view": "above"}, r"row 1: view is 'above'; .*`star-r1 data check` finds all damage"),
        ({"transformations": []}, "row 1: it has no transformation"),
        ({"final": {"bytes": b"no picture"}}, "split train, 1/basic/center: the final picture is no picture"),
    ],
)
def test_a_damaged_row_is_an_error_that_names_it_and_no_page_is_left(tmp_path, damaged, message):
    with pytest.raises(ValueError, match=message):
        shown(tmp_path, [row(0), row(1) | damaged])
    assert [file.name for file in tmp_path.iterdir()] == ["pairs"]


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no data set in .*; render one, or correct the path"):
        write_page(tmp_path, tmp_path / "page.html")
    with pytest.raises(ValueError, match="has no split 'val'; it has train"):
        shown(tmp_path, [row(0)], split="val")
    with pytest.raises(ValueError, match="max_pairs is 0"):
        write_page(tmp_path / "pairs", tmp_path / "page.html", max_pairs=0)
