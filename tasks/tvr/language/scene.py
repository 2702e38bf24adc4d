"""Objects, their attributes, transformations, and the difference of two scenes.

A scene is a tuple of objects; an object's index in it is its name in every question and answer. Everything here is
immutable and pure: `apply` returns a new scene. The vocabulary, the plane and its steps are TRANCE's.

STAR-R1's task has the four `ATTRIBUTES`. TRANCE also moves objects: `position` is understood wherever scenes are
applied and compared, so that samples with moves can be read and judged, but it is asked for nowhere.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

COLORS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
SHAPES = ("cube", "sphere", "cylinder")
SIZES = ("small", "medium", "large")
MATERIALS = ("rubber", "metal", "glass")
ATTRIBUTES: dict[str, tuple[str, ...]] = {"color": COLORS, "shape": SHAPES, "size": SIZES, "material": MATERIALS}
VIEWS = ("center", "left", "right")
SETTINGS = ("basic", "event", "view")
MAX_OBJECTS = 10
RADIUS = {"small": 0.3, "medium": 0.6, "large": 0.9}
VISIBLE = 3.0
"""Objects within +- this on both axes of the plane are in sight, scene units."""
STEP = 1.5
"""Length of one step of a move along an axis, scene units."""
DIRECTIONS = {
    "front": (-1, 0),
    "behind": (1, 0),
    "left": (0, -1),
    "right": (0, 1),
    "front-left": (-1, -1),
    "front-right": (-1, 1),
    "behind-left": (1, -1),
    "behind-right": (1, 1),
}
MOVES = tuple(f"{direction}-{steps}" for direction in DIRECTIONS for steps in (1, 2))
"""Values of `position`: a direction and a number of steps."""
_POSSIBLE = {**ATTRIBUTES, "position": MOVES}
_SAME_PLACE = 1e-6  # sums of steps are not exact


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneObject:
    """One solid on the ground plane.

    *position* is in scene units on the plane (in sight within +-3); *rotation* in degrees about the vertical axis.

    >>> str(SceneObject(color="red", shape="cube", size="large", material="metal"))
    'large red metal cube'
    """

    color: str
    shape: str
    size: str
    material: str
    position: tuple[float, float] = (0.0, 0.0)
    rotation: float = 0.0

    def __post_init__(self) -> None:
        if self.color in COLORS and self.shape in SHAPES and self.size in SIZES and self.material in MATERIALS:
            return  # before the loop, which only finds what is wrong: scenes are read by the million
        for attribute, values in ATTRIBUTES.items():
            value = getattr(self, attribute)
            if value not in values:
                raise ValueError(f"object {attribute} is {value!r}; it must be one of {', '.join(values)}")

    def __str__(self) -> str:
        return f"{self.size} {self.color} {self.material} {self.shape}"

    @property
    def in_sight(self) -> bool:
        return _in_sight(self.position)


Scene = tuple[SceneObject, ...]


class Transformation(NamedTuple):
    """One change `(object index, attribute, new value)`. Well-formed, not necessarily valid in a given scene.

    A tuple, because a reply may hold a hundred thousand of them.

    >>> str(Transformation(index=2, attribute="color", value="cyan"))
    '2.color.cyan'
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    attribute: str
    value: str

    def __str__(self) -> str:
        return f"{self.index}.{self.attribute}.{self.value}"

    def is_valid_in(self, scene: Scene) -> bool:
        """Whether the object is in *scene* and the attribute can take the value."""
        return 0 <= self.index < len(scene) and self.value in _POSSIBLE.get(self.attribute, ())


def apply(scene: Scene, transformations: Iterable[Transformation]) -> Scene:
    """The scene after *transformations*, in order: a later value overrides, moves add up.

    Raises ValueError on an invalid one.
    """
    objects = list(scene)
    for (index, attribute), value in _final_cells(scene, transformations).items():
        objects[index] = replace(objects[index], **{attribute: value})
    return tuple(objects)


def difference(before: Scene, after: Scene) -> tuple[Transformation, ...]:
    """The changes of the four attributes from *before* to *after*, one per differing cell, in index order."""
    return tuple(
        Transformation(index=index, attribute=attribute, value=getattr(new, attribute))
        for index, (old, new) in enumerate(_paired(before, after))
        for attribute in ATTRIBUTES
        if getattr(old, attribute) != getattr(new, attribute)
    )


def count_differences(before: Scene, after: Scene) -> int:
    """The number of (object, attribute) cells in which two scenes differ, position included.

    All places out of sight are the same place, as in TRANCE.
    """
    moved = sum(_differ("position", old.position, new.position) for old, new in _paired(before, after))
    return len(difference(before, after)) + moved


def count_final_differences(
    scene: Scene, transformations: Iterable[Transformation], others: Iterable[Transformation]
) -> int:
    """`count_differences` of what the two lists make of *scene*, without making either: a look at the touched cells.

    Raises ValueError on an invalid transformation.
    """
    ours, theirs = _final_cells(scene, transformations), _final_cells(scene, others)
    count = 0
    for cell in ours.keys() | theirs.keys():
        index, attribute = cell
        initial = getattr(scene[index], attribute)
        count += _differ(attribute, ours.get(cell, initial), theirs.get(cell, initial))
    return count


def net_changes(scene: Scene, transformations: Iterable[Transformation]) -> tuple[Transformation, ...]:
    """What can be seen of *transformations*: the last value of each cell, if it is new, and every move, in order.

    TRANCE sometimes changes one cell twice; nobody who looks at the two pictures can know the value in between.
    """
    moves_and_cells: dict[tuple[int, str] | int, Transformation] = {}
    for place, change in enumerate(transformations):
        index, attribute, value = change
        if attribute == "position":
            moves_and_cells[place] = change
            continue
        moves_and_cells.pop((index, attribute), None)  # so that the last value of a cell has its own place in the order
        if getattr(scene[index], attribute) != value:
            moves_and_cells[index, attribute] = change
    return tuple(moves_and_cells.values())


def check_possible(change: Transformation, scene: Scene) -> None:
    """Raises ValueError."""
    if not change.is_valid_in(scene):
        raise ValueError(f"{change} is not possible in a scene of {len(scene)} objects")


def _final_cells(scene: Scene, transformations: Iterable[Transformation]) -> dict[tuple[int, str], Any]:
    """The last value of every cell (object index, attribute) that is touched; moves add up."""
    cells: dict[tuple[int, str], Any] = {}
    for change in transformations:
        check_possible(change, scene)
        index, attribute, value = change
        cell = (index, attribute)
        if attribute == "position":
            cells[cell] = _moved(cells.get(cell, scene[index].position), value)
        else:
            cells[cell] = value
    return cells


def _differ(attribute: str, one: Any, other: Any) -> bool:
    if attribute != "position":
        return bool(one != other)
    return math.dist(one, other) > _SAME_PLACE and (_in_sight(one) or _in_sight(other))


def _in_sight(position: tuple[float, float]) -> bool:
    x, y = position
    return abs(x) <= VISIBLE + _SAME_PLACE and abs(y) <= VISIBLE + _SAME_PLACE


def _moved(position: tuple[float, float], move: str) -> tuple[float, float]:
    direction, _, steps = move.rpartition("-")
    x, y = (at + STEP * int(steps) * along for at, along in zip(position, DIRECTIONS[direction], strict=True))
    return x, y


def _paired(before: Scene, after: Scene) -> Iterator[tuple[SceneObject, SceneObject]]:
    if len(before) != len(after):
        raise ValueError(f"scenes of {len(before)} and {len(after)} objects cannot be compared")
    return zip(before, after, strict=True)
