"""Seeded, balanced random scenes and transformations, every object visible in every picture.

Numbers, attributes, values and changes are drawn first, each equally likely, and kept; then places are drawn until the
solids stand apart, before and after the changes, and measured to be visible. So visibility chooses among places and
does not tilt what is balanced. Objects are numbered from left to right in the centre picture, so that an index means
something to somebody who looks. Nothing here depends on global state: the same generator state gives the same scene.
"""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tvr.render import FIELD_OF_VIEW_DEG, index_map, project
from tvr.scene import ATTRIBUTES, RADIUS, VIEWS, VISIBLE, Scene, SceneObject, Transformation, apply

GAP = 0.15  # between any two solids on the ground, scene units; TRANCE's
MIN_PIXELS = 150 / (320 * 240)  # of the picture; TRANCE's threshold
MIN_SHARE = 0.5  # of the pixels that the object would have alone
TRIES_PER_DRAW = 200
MAX_DRAWS = 50  # another draw is needed only where ten objects, most of them large, find no room
PLACES_PER_TRY = 40  # for each object

Picture = tuple[Scene, str]
"""A state of a scene and the view it is seen from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Draft:
    """Objects without places, and the changes of each: `{attribute: new value}`."""

    objects: tuple[SceneObject, ...]
    changes: tuple[dict[str, str], ...]

    def radius(self, index: int) -> float:
        """The largest that the object ever has."""
        sizes = (self.objects[index].size, self.changes[index].get("size", "small"))
        return max(RADIUS[size] for size in sizes)


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

    def draw() -> _Draft:
        objects = _sample_objects(rng, num_objects)
        changes: tuple[dict[str, str], ...] = tuple({} for _ in objects)
        for index, attribute in rng.sample(cells, num_changes):
            changes[index][attribute] = change_cell(rng, objects, index, attribute).value
        return _Draft(objects=objects, changes=changes)

    def pictures(scene: Scene, changes: Iterable[Transformation]) -> list[Picture]:
        return [(scene, "center"), (apply(scene, changes), final_view)]

    for _ in range(MAX_DRAWS):
        draft = draw()
        for _ in range(TRIES_PER_DRAW):
            places = _sample_places(rng, [draft.radius(index) for index in range(num_objects)], field_of_view)
            if places is None:
                continue
            scene, transformations = _put(draft, places)
            if all(all_visible(*picture, field_of_view) for picture in pictures(scene, transformations)):
                return scene, transformations
    raise ValueError(f"no room for {num_objects} objects in sight of each camera; ask for fewer objects")


def sample_scene(rng: random.Random, num_objects: int, field_of_view: float = FIELD_OF_VIEW_DEG) -> Scene:
    """Random objects, visible from every view, on places that leave room for every size.

    Raises ValueError when there is no room.
    """
    draft = _Draft(objects=_sample_objects(rng, num_objects), changes=({"size": "large"},) * num_objects)
    for _ in range(TRIES_PER_DRAW * MAX_DRAWS):
        places = _sample_places(rng, [draft.radius(index) for index in range(num_objects)], field_of_view)
        if places is not None:
            scene, _ = _put(draft, places)
            if all(all_visible(scene, view, field_of_view) for view in VIEWS):
                return scene
    raise ValueError(f"no room for {num_objects} large objects in sight of each camera; ask for fewer objects")


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


def _sample_objects(rng: random.Random, count: int) -> Scene:
    def draw() -> SceneObject:
        attributes: dict[str, Any] = {attribute: rng.choice(values) for attribute, values in ATTRIBUTES.items()}
        return SceneObject(**attributes, rotation=rng.uniform(0.0, 360.0))

    return tuple(draw() for _ in range(count))


def _put(draft: _Draft, places: Sequence[tuple[float, float]]) -> tuple[Scene, tuple[Transformation, ...]]:
    """The objects on their places, numbered from left to right, and the changes under these numbers."""
    order = sorted(range(len(places)), key=lambda index: project(places[index], 0.0, "center")[0])
    scene = tuple(replace(draft.objects[index], position=places[index]) for index in order)
    changes = (
        Transformation(number, attribute, draft.changes[index][attribute])
        for number, index in enumerate(order)
        for attribute in ATTRIBUTES
        if attribute in draft.changes[index]
    )
    return scene, tuple(changes)


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
