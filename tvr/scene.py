"""Objects, their attributes, transformations, and the difference of two scenes.

A scene is a tuple of objects; an object's index in it is its name in every question and answer. Everything here is
immutable and pure: `apply` returns a new scene. The vocabulary is TRANCE's (`tvr.md`), in its order.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

COLORS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
SHAPES = ("cube", "sphere", "cylinder")
SIZES = ("small", "medium", "large")
MATERIALS = ("rubber", "metal", "glass")
ATTRIBUTES: dict[str, tuple[str, ...]] = {"color": COLORS, "shape": SHAPES, "size": SIZES, "material": MATERIALS}
VIEWS = ("center", "left", "right")
SETTINGS = ("basic", "event", "view")
MAX_OBJECTS = 10
RADIUS = {"small": 0.3, "medium": 0.6, "large": 0.9}


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneObject:
    """One solid on the ground plane.

    *position* is in scene units on the plane (visible within +-3); *rotation* in degrees about the vertical axis.

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
        for attribute, values in ATTRIBUTES.items():
            value = getattr(self, attribute)
            if value not in values:
                raise ValueError(f"object {attribute} is {value!r}; it must be one of {', '.join(values)}")

    def __str__(self) -> str:
        return f"{self.size} {self.color} {self.material} {self.shape}"


Scene = tuple[SceneObject, ...]


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Transformation:
    """One change `(object index, attribute, new value)`. Well-formed, not necessarily valid in a given scene.

    >>> str(Transformation(index=2, attribute="color", value="cyan"))
    '2.color.cyan'
    """

    index: int
    attribute: str
    value: str

    def __str__(self) -> str:
        return f"{self.index}.{self.attribute}.{self.value}"

    def is_valid_in(self, scene: Scene) -> bool:
        """Whether the object is in *scene* and the attribute can take the value."""
        return 0 <= self.index < len(scene) and self.value in ATTRIBUTES.get(self.attribute, ())


def apply(scene: Scene, transformations: Iterable[Transformation]) -> Scene:
    """The scene after *transformations*, in order; a later one overrides. Raises ValueError on an invalid one."""
    objects = list(scene)
    for change in transformations:
        if not change.is_valid_in(scene):
            raise ValueError(f"{change} is not possible in a scene of {len(scene)} objects")
        values: dict[str, Any] = {change.attribute: change.value}
        objects[change.index] = replace(objects[change.index], **values)
    return tuple(objects)


def difference(before: Scene, after: Scene) -> tuple[Transformation, ...]:
    """The changes that lead from *before* to *after*, one per differing (object, attribute) cell, in index order."""
    if len(before) != len(after):
        raise ValueError(f"scenes of {len(before)} and {len(after)} objects cannot be compared")
    return tuple(
        Transformation(index=index, attribute=attribute, value=getattr(new, attribute))
        for index, (old, new) in enumerate(zip(before, after, strict=True))
        for attribute in ATTRIBUTES
        if getattr(old, attribute) != getattr(new, attribute)
    )
