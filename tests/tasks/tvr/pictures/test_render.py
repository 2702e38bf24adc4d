"""Pictures show what the scene says, where the cameras say."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tasks.tvr.language.scene import RADIUS, VIEWS, SceneObject
from tasks.tvr.pictures.render import in_parallel, project, render
from tests.golden import contact_sheet

SIZE = (112, 80)


def red(picture: np.ndarray) -> np.ndarray:
    """`[height, width]` bool, plainly red pixels."""
    r, g, b = (picture[..., channel].astype(int) for channel in range(3))
    return (r > 60) & (r > 2 * g) & (r > 2 * b)


def sphere(size: str = "large", material: str = "rubber", place: tuple[float, float] = (1.2, -0.6)) -> SceneObject:
    return SceneObject(color="red", shape="sphere", size=size, material=material, position=place)


@pytest.mark.parametrize("view", VIEWS)
def test_an_object_is_where_its_projection_is(view):
    item = sphere()
    rows, columns = np.nonzero(red(render((item,), view, SIZE, 4, seed=0)))
    x, y, _ = project(item.position, RADIUS[item.size], view)
    half_width = SIZE[0] / 2
    assert columns.mean() == pytest.approx(half_width * (1 + x), abs=2.0)
    assert rows.mean() == pytest.approx(SIZE[1] / 2 - half_width * y, abs=2.0)


def test_left_and_right_cameras_see_an_object_on_other_sides():
    # The object stands behind the middle: a camera further left sees it further left, and the other way round.
    left, center, right = (project((0.0, 2.0), 0.0, view)[0] for view in ("left", "center", "right"))
    assert abs(center) < 1e-9
    assert left < -0.05
    assert right > 0.05


def test_larger_objects_cover_more_pixels():
    small, medium, large = (red(render((sphere(size),), "center", SIZE, 4, seed=0)).sum() for size in RADIUS)
    assert 0 < small < medium < large


def test_materials_and_shapes_look_different():
    for attribute, values in (("material", ("rubber", "metal", "glass")), ("shape", ("cube", "sphere", "cylinder"))):
        items = [replace(sphere(), **{attribute: value}) for value in values]
        looks = [render((item,), "center", SIZE, 16, seed=0).astype(int) for item in items]
        for first, second in ((0, 1), (0, 2), (1, 2)):
            assert (np.abs(looks[first] - looks[second]).max(axis=-1) > 40).sum() > 20


def draw(seed: int) -> tuple[int, bytes]:
    return seed, render((sphere(),), "left", (32, 24), 2, seed, 49.0).tobytes()


def test_the_same_seed_gives_the_same_picture_in_another_process():
    here = list(in_parallel(draw, [7, 7, 8], workers=1))
    there = list(in_parallel(draw, [7, 7, 8], workers=2))
    assert sorted(here) == sorted(there)
    assert here[0] == here[1]
    assert here[0][1] != here[2][1]


@pytest.mark.parametrize(
    ("row", "column"), [(0, 0), (3, 4), (8, 8)], ids=["large rubber cube", "large metal sphere", "small glass cylinder"]
)
def test_the_contact_sheet_shows_what_is_rendered_today(row, column):
    with Image.open(contact_sheet.SHEET) as sheet:
        pixels = np.array(sheet.convert("RGB")).astype(int)
    height, width = contact_sheet.HEIGHT, contact_sheet.WIDTH
    shown = pixels[row * height : (row + 1) * height, column * width : (column + 1) * width]
    today = contact_sheet.cell(*contact_sheet.ROWS[row], *contact_sheet.COLUMNS[column])
    assert np.abs(shown - today).mean() < 0.5  # of 255; another CPU may round otherwise
