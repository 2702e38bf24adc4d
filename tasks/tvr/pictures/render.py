"""Scene and view to picture, with Mitsuba 3 (`scalar_rgb`: needs no LLVM and no GPU, and is bit-reproducible).

TRANCE's solids on CLEVR's stage. Camera, lens and lamps stand where the base scene of CLEVR has them, whose numbers are
published with Kubric's CLEVR (Greff et al. 2022, arXiv:2203.03570), turned so that the centre camera looks along +y.
TRANCE added a left and a right camera in a binary file; here they are the centre camera turned by 45 degrees.
"""

import io
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from tasks.tvr.language.scene import RADIUS, Scene, SceneObject

RENDERER = 2
"""Counts changes of the pictures: other numbers, other pixels."""

Work = TypeVar("Work")
Done = TypeVar("Done")

AZIMUTH_DEG = {"center": 0.0, "left": -45.0, "right": 45.0}
CAMERA_DISTANCE = math.hypot(7.48113, 6.50764)  # on the ground, scene units
CAMERA_HEIGHT = 5.34367
FIELD_OF_VIEW_DEG = 2 * math.degrees(math.atan2(16.0, 35.0))  # horizontal: a lens of 35 mm before 32 mm of film
LAMPS = {"key": (2.04, -6.77, 4.26), "fill": (-6.09, 0.89, 3.01), "back": (1.23, 2.62, 5.82)}
LAMP_INTENSITY = {"key": 65.0, "fill": 25.0, "back": 28.0}

INDEX_MAP_SIZE = (160, 120)
"""Visibility is measured in pixels of this size, whatever the size of the pictures."""

# The colours of CLEVR, which TRANCE took over, as 8-bit sRGB.
COLOR_RGB = {
    "gray": (87, 87, 87),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}


def camera_origin(view: str) -> tuple[float, float, float]:
    """Where the camera of *view* stands, in scene units; the centre camera looks along +y, all look at the origin."""
    azimuth = math.radians(AZIMUTH_DEG[view])
    return CAMERA_DISTANCE * math.sin(azimuth), -CAMERA_DISTANCE * math.cos(azimuth), CAMERA_HEIGHT


def project(
    position: tuple[float, float], height: float, view: str, field_of_view: float = FIELD_OF_VIEW_DEG
) -> tuple[float, float, float]:
    """Image coordinates of a point: x to the right and y up in half picture widths, and its depth in scene units."""
    (ex, ey, ez), (rx, ry), (fx, fy, fz) = _camera_frame(view)
    dx, dy, dz = position[0] - ex, position[1] - ey, height - ez
    depth = dx * fx + dy * fy + dz * fz
    scale = depth * math.tan(math.radians(field_of_view / 2))
    # up = right x forward
    up = ry * fz * dx - rx * fz * dy + (rx * fy - ry * fx) * dz
    return (dx * rx + dy * ry) / scale, up / scale, depth


def render(
    scene: Scene,
    view: str,
    size: tuple[int, int],
    spp: int,
    seed: int,
    field_of_view: float = FIELD_OF_VIEW_DEG,
) -> np.ndarray:
    """One picture `[height, width, 3]`, uint8 sRGB.

    *size* is (width, height) in pixels, *spp* samples per pixel, *field_of_view* horizontal, in degrees.
    """
    return render_with_index(scene, view, size, spp, seed, field_of_view)[0]


def render_with_index(
    scene: Scene, view: str, size: tuple[int, int], spp: int, seed: int, field_of_view: float
) -> tuple[np.ndarray, np.ndarray]:
    """`render`, and the `index_map` of the same pixels."""
    mi = _mitsuba()
    shapes = {name: {**shape, "bsdf": _material(item)} for name, shape, item in _shapes(mi, scene)}
    stage = mi.load_dict({**_stage(mi), **shapes, "camera": _camera(mi, view, size, spp, field_of_view)})
    light = np.array(mi.render(stage, seed=seed))
    shown = index_map(scene, view, size, field_of_view)
    light = _without_specks(light, shown < 0)
    bitmap = mi.Bitmap(light).convert(mi.Bitmap.PixelFormat.RGB, mi.Struct.Type.UInt8, srgb_gamma=True)
    return np.array(bitmap), shown


def index_map(
    scene: Scene,
    view: str,
    size: tuple[int, int] = INDEX_MAP_SIZE,
    field_of_view: float = FIELD_OF_VIEW_DEG,
) -> np.ndarray:
    """Which object each pixel shows: its index, or -1 for the ground; int `[height, width]`.

    Glass counts as hiding what is behind it.
    """
    mi = _mitsuba()
    description: dict[str, Any] = {
        "type": "scene",
        "integrator": {"type": "aov", "aovs": "index:shape_index"},
        "camera": _camera(mi, view, size, 1, field_of_view),
    }
    owner = {}
    for index, item in enumerate(scene):
        for name, shape, _ in _shapes(mi, (item,), first=index):
            description[name] = shape
            owner[name] = index
    stage = mi.load_dict(description)
    shown = np.array(mi.render(stage, seed=0))[..., 0].round().astype(int)  # 0: nothing; n: shape n - 1
    return np.array([-1, *(owner[shape.id()] for shape in stage.shapes())])[shown]


def in_parallel(work: Callable[[Work], Done], tasks: list[Work], workers: int) -> Iterator[Done]:
    """Do *tasks* on *workers* processes (0: one a core), in any order: what they make must not depend on it."""
    workers = min(workers or len(os.sched_getaffinity(0)), len(tasks))
    if workers <= 1:
        yield from map(work, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(work, tasks)


def to_png(picture: np.ndarray) -> bytes:
    """Encode a uint8 picture `[height, width, 3]` as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def _mitsuba() -> Any:
    import drjit
    import mitsuba as mi

    if mi.variant() != "scalar_rgb":
        mi.set_variant("scalar_rgb")
        drjit.set_thread_count(1)
    return mi


@lru_cache
def _camera_frame(
    view: str,
) -> tuple[tuple[float, float, float], tuple[float, float], tuple[float, float, float]]:
    """The camera's place, and the unit vectors to its right (level) and forward."""
    x, y, z = camera_origin(view)
    level, length = math.hypot(x, y), math.sqrt(x * x + y * y + z * z)
    return (x, y, z), (-y / level, x / level), (-x / length, -y / length, -z / length)


def _stage(mi: Any) -> dict[str, Any]:
    """Ground, sky and lamps. Lamps that are points keep few samples per pixel nearly free of noise; the sky is bright
    above and dark at the horizon, so that metal has something to mirror."""
    ground = {"type": "diffuse", "reflectance": {"type": "rgb", "value": [0.42, 0.42, 0.42]}}
    rows = np.array([3.0, 2.4, 1.2, 0.25, 0.1, 0.1] + [0.1] * 6, dtype=np.float32)  # zenith to nadir, 15 degrees each
    sky = mi.Bitmap(np.broadcast_to(rows[:, None, None], (12, 24, 3)).copy())
    upright = mi.ScalarTransform4f().rotate([1, 0, 0], 90)
    lamps = {
        name: {"type": "point", "position": place, "intensity": {"type": "rgb", "value": LAMP_INTENSITY[name]}}
        for name, place in LAMPS.items()
    }
    return {
        "type": "scene",
        "integrator": {"type": "path", "max_depth": 6, "rr_depth": 5},
        "ground": {"type": "rectangle", "to_world": mi.ScalarTransform4f().scale([60, 60, 1]), "bsdf": ground},
        "sky": {"type": "envmap", "bitmap": sky, "to_world": upright},
        **lamps,
    }


def _camera(mi: Any, view: str, size: tuple[int, int], spp: int, field_of_view: float) -> dict[str, Any]:
    return {
        "type": "perspective",
        "fov": field_of_view,
        "fov_axis": "x",
        "to_world": mi.ScalarTransform4f().look_at(origin=camera_origin(view), target=[0, 0, 0], up=[0, 0, 1]),
        "film": {"type": "hdrfilm", "width": size[0], "height": size[1], "rfilter": {"type": "box"}},
        "sampler": {"type": "multijitter", "sample_count": spp},
    }


def _shapes(mi: Any, scene: Scene, first: int = 0) -> Iterator[tuple[str, dict[str, Any], SceneObject]]:
    """Every part of every object: a name, Mitsuba's shape without a material, and the object."""
    for index, item in enumerate(scene, start=first):
        for part, shape in _solid(mi, item).items():
            yield f"object_{index}_{part}", shape, item


def _solid(mi: Any, item: SceneObject) -> dict[str, dict[str, Any]]:
    """The named parts of a solid on the plane: a cube of diagonal 2r, a sphere of radius r, a cylinder 1.6r wide."""
    radius = RADIUS[item.size]
    x, y = item.position
    at = mi.ScalarTransform4f()
    if item.shape == "sphere":
        return {"body": {"type": "sphere", "center": [x, y, radius], "radius": radius}}
    if item.shape == "cube":
        half = radius / math.sqrt(2.0)
        return {
            "body": {
                "type": "cube",
                "to_world": at.translate([x, y, half]).rotate([0, 0, 1], item.rotation).scale(half),
            }
        }
    half = 0.8 * radius
    body = {"type": "cylinder", "p0": [x, y, 0.0], "p1": [x, y, 2 * half], "radius": half}
    return {"body": body, "lid": {"type": "disk", "to_world": at.translate([x, y, 2 * half]).scale(half)}}


def _material(item: SceneObject) -> dict[str, Any]:
    """Rubber is matt; metal mirrors the bright ground and the dark horizon in its colour; glass is clear and pale."""
    rgb = [(channel / 255.0) ** 2.2 for channel in COLOR_RGB[item.color]]
    if item.material == "rubber":
        return {"type": "twosided", "bsdf": {"type": "diffuse", "reflectance": {"type": "rgb", "value": rgb}}}
    if item.material == "metal":
        tint = {"type": "rgb", "value": [channel**0.6 for channel in rgb]}
        metal = {"type": "roughconductor", "alpha": 0.12, "specular_reflectance": tint, "material": "none"}
        return {"type": "twosided", "bsdf": metal}
    # Thin walls let light pass straight, which few samples render with little noise.
    tint = {"type": "rgb", "value": [channel**0.18 for channel in rgb]}
    return {"type": "thindielectric", "int_ior": 1.5, "specular_transmittance": tint}


def _without_specks(light: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Take single bright pixels off the ground: what metal and glass focus there, which few samples hit by chance."""
    height, width = ground.shape
    padded = np.pad(light, ((1, 1), (1, 1), (0, 0)), mode="edge")
    around = np.stack([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)])
    return np.where(ground[..., None], np.minimum(light, 1.15 * np.median(around, axis=0)), light).astype(np.float32)
