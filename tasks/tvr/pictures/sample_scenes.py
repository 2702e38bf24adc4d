"""Seeded, balanced random scenes and transformations, every object visible in every picture.

Numbers, attributes, values and changes are drawn first, each equally likely, and kept; then places are drawn until the
solids stand apart, before and after the changes, and measured to be visible. So visibility chooses among places and
does not tilt what is balanced. Objects are numbered from left to right in the centre picture, so that an index means
something to somebody who looks. Nothing here depends on global state: the same generator state gives the same scene.
"""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tasks.tvr.language.scene import (
    ATTRIBUTES,
    RADIUS,
    VIEWS,
    VISIBLE,
    Scene,
    SceneObject,
    Transformation,
    apply,
    difference,
)
from tasks.tvr.pictures.render import FIELD_OF_VIEW_DEG, index_map, project

GAP = 0.15  # between any two solids on the ground, scene units; TRANCE's
MIN_PIXELS = 150 / (320 * 240)  # of the picture; TRANCE's threshold
MIN_SHARE = 0.5  # of the pixels that the object would have alone
TRIES_PER_DRAW = 200
MAX_DRAWS = 50  # another draw is needed only where ten objects, most of them large, find no room
PLACES_PER_TRY = 40  # for each object


def sample_pair(
    rng: random.Random,
    num_objects: int,
    num_changes: int,
    final_view: str = "center",
    field_of_view: float = FIELD_OF_VIEW_DEG,
) -> tuple[Scene, tuple[Transformation, ...]]:
    """An initial scene and *num_changes* changes of different (object, attribute) cells, each to another value.

    Every object is visible at first from the centre and at last from *final_view*. Raises ValueError when there are not
    enough cells, or no room.
    """
    cells = [(index, attribute) for index in range(num_objects) for attribute in ATTRIBUTES]
    if num_changes > len(cells):
        raise ValueError(f"{num_changes} changes do not fit in {num_objects} objects; ask for at most {len(cells)}")

    def draw() -> Sequence[Scene]:
        objects = sample_objects(rng, num_objects)
        return objects, change_cells(rng, objects, rng.sample(cells, num_changes))

    initial, final = sample_places(rng, draw, [(0, "center"), (1, final_view)], field_of_view)
    return initial, difference(initial, final)


def sample_places(
    rng: random.Random, draw: Callable[[], Sequence[Scene]], pictures: Sequence[tuple[int, str]], field_of_view: float
) -> list[Scene]:
    """What *draw* gives, states of the same objects, on places that leave room for each, numbered from left to right.

    *pictures* are those that will be made: the number of a state and a view. In each of them every object is visible.
    Raises ValueError when there is no room.
    """
    for _ in range(MAX_DRAWS):
        states = draw()
        num_objects = len(states[0])
        radii = [max(RADIUS[state[index].size] for state in states) for index in range(num_objects)]
        for _ in range(TRIES_PER_DRAW):
            places = _sample_places(rng, radii, field_of_view)
            if places is None:
                continue
            placed = [_put(state, places) for state in states]
            if all(all_visible(placed[state], view, field_of_view) for state, view in pictures):
                return placed
    raise ValueError(f"no room for {num_objects} objects in sight of each camera; ask for fewer objects")


def sample_objects(rng: random.Random, count: int) -> Scene:
    """Objects of random attributes and rotations, without places."""

    def draw() -> SceneObject:
        attributes: dict[str, Any] = {attribute: rng.choice(values) for attribute, values in ATTRIBUTES.items()}
        return SceneObject(**attributes, rotation=rng.uniform(0.0, 360.0))

    return tuple(draw() for _ in range(count))


def change_cells(rng: random.Random, scene: Scene, cells: Iterable[tuple[int, str]]) -> Scene:
    """*scene* with another value in each of *cells*, different (object index, attribute)."""
    return apply(scene, [change_cell(rng, scene, *cell) for cell in cells])


def change_cell(rng: random.Random, scene: Scene, index: int, attribute: str) -> Transformation:
    """A change of one cell to a value that it does not have, each equally likely."""
    old = getattr(scene[index], attribute)
    value = rng.choice([value for value in ATTRIBUTES[attribute] if value != old])
    return Transformation(index=index, attribute=attribute, value=value)


def all_visible(scene: Scene, view: str, field_of_view: float = FIELD_OF_VIEW_DEG) -> bool:
    """Whether the picture of *scene* shows enough of every object: measured, with the solids that are rendered.

    Enough is TRANCE's share of the picture, and half of what it would show of the object alone.
    """
    shown = index_map(scene, view, field_of_view=field_of_view)
    pixels = np.bincount(shown.ravel() + 1, minlength=len(scene) + 1)[1:]
    if pixels.min() < MIN_PIXELS * shown.size:
        return False
    alone = (index_map((item,), view, field_of_view=field_of_view) for item in scene)
    return all(seen >= MIN_SHARE * np.count_nonzero(own == 0) for seen, own in zip(pixels, alone, strict=True))


def _put(state: Scene, places: Sequence[tuple[float, float]]) -> Scene:
    """The objects on their places, numbered from left to right."""
    order = sorted(range(len(places)), key=lambda index: project(places[index], 0.0, "center")[0])
    return tuple(replace(state[index], position=places[index]) for index in order)


def _sample_places(
    rng: random.Random, radii: Sequence[float], field_of_view: float
) -> list[tuple[float, float]] | None:
    """A place for each object, in the visible plane and in every picture, apart from the others; or None."""
    places: list[tuple[float, float]] = []
    for radius in radii:
        for _ in range(PLACES_PER_TRY):
            place = (rng.uniform(-VISIBLE, VISIBLE), rng.uniform(-VISIBLE, VISIBLE))
            apart = all(
                math.dist(place, other) >= radius + other_radius + GAP and _left_or_right(place, other, len(radii))
                for other, other_radius in zip(places, radii, strict=False)
            )
            if apart and _in_every_picture(place, radius, field_of_view):
                places.append(place)
                break
        else:
            return None
    return places


def _in_every_picture(place: tuple[float, float], radius: float, field_of_view: float) -> bool:
    half_width = math.tan(math.radians(field_of_view / 2))
    for view in VIEWS:
        x, y, depth = project(place, radius, view, field_of_view)
        margin = radius / (depth * half_width)
        if abs(x) + margin > 1.0 or abs(y) + margin > 0.72:
            return False
    return True


def _left_or_right(a: tuple[float, float], b: tuple[float, float], count: int) -> bool:
    """Plainly so in the centre picture, where objects are numbered from left to right."""
    return abs(project(a, 0.0, "center")[0] - project(b, 0.0, "center")[0]) >= 0.3 / count
