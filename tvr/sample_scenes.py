"""Seeded, balanced random scenes and transformations.

Every attribute, value, number of objects and number of changes is equally likely. Objects are numbered from left to
right in the centre picture, so that an index means something to somebody who looks. Nothing here depends on global
state: the same generator state gives the same scene.
"""

import math
import random

from tvr.render import ELEVATION_DEG, project
from tvr.scene import ATTRIBUTES, RADIUS, VIEWS, Scene, SceneObject, Transformation

PLANE = 3.0
GAP = 0.15  # between any two solids on the ground, scene units
MAX_TRIES = 2000


def sample_pair(rng: random.Random, num_objects: int, num_changes: int) -> tuple[Scene, tuple[Transformation, ...]]:
    """An initial scene and *num_changes* changes of different (object, attribute) cells, each to another value."""
    scene = sample_scene(rng, num_objects)
    cells = [(index, attribute) for index in range(num_objects) for attribute in ATTRIBUTES]
    if num_changes > len(cells):
        raise ValueError(f"{num_changes} changes do not fit in {num_objects} objects; ask for at most {len(cells)}")
    chosen = sorted(rng.sample(cells, num_changes))
    return scene, tuple(change_cell(rng, scene, index, attribute) for index, attribute in chosen)


def sample_scene(rng: random.Random, num_objects: int) -> Scene:
    """Random objects on places that leave room for every size, so that a change of size never makes two collide."""
    objects = [
        SceneObject(
            **{attribute: rng.choice(values) for attribute, values in ATTRIBUTES.items()},
            position=place,
            rotation=rng.uniform(0.0, 360.0),
        )
        for place in sample_places(rng, num_objects)
    ]
    return tuple(sorted(objects, key=lambda item: project(item.position, 0.0, "center")[0]))


def change_cell(rng: random.Random, scene: Scene, index: int, attribute: str) -> Transformation:
    """A change of one cell to a value that it does not have, each equally likely."""
    old = getattr(scene[index], attribute)
    value = rng.choice([value for value in ATTRIBUTES[attribute] if value != old])
    return Transformation(index=index, attribute=attribute, value=value)


def sample_places(rng: random.Random, count: int) -> list[tuple[float, float]]:
    """*count* places in the visible plane. Raises ValueError when no arrangement was found in 2000 tries."""
    # The more objects, the smaller the largest radius that fits each; ten large ones never fit in +-3.
    radius = RADIUS["large"] if count <= 4 else RADIUS["medium"]
    for _ in range(MAX_TRIES):
        places: list[tuple[float, float]] = []
        for _ in range(20 * count):
            place = (rng.uniform(-PLANE, PLANE), rng.uniform(-PLANE, PLANE))
            if _in_every_picture(place, radius) and all(_apart(place, other, radius, count) for other in places):
                places.append(place)
                if len(places) == count:
                    return places
    raise ValueError(f"no room for {count} objects of radius {radius} within +-{PLANE}; ask for fewer objects")


def _in_every_picture(place: tuple[float, float], radius: float) -> bool:
    for view in VIEWS:
        x, y, depth = project(place, radius, view)
        margin = radius / (depth * math.tan(math.radians(18.0)))
        if abs(x) + margin > 1.0 or abs(y) + margin > 0.72:
            return False
    return True


def _apart(a: tuple[float, float], b: tuple[float, float], radius: float, count: int) -> bool:
    """Not touching, plainly left or right of each other, and neither hides much of the other from any camera."""
    if math.dist(a, b) < 2 * radius + GAP:
        return False
    if abs(project(a, 0.0, "center")[0] - project(b, 0.0, "center")[0]) < 0.4 / count:
        return False
    for view in VIEWS:
        (ax, ay, depth_a), (bx, by, depth_b) = project(a, radius, view), project(b, radius, view)
        size = 2 * radius / (min(depth_a, depth_b) * math.tan(math.radians(18.0)))
        if math.dist((ax, ay), (bx, by)) < 0.75 * size * math.cos(math.radians(ELEVATION_DEG)):
            return False
    return True
