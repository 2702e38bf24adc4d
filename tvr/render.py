"""Scene and view to picture, with Mitsuba 3 (`scalar_rgb`: needs no LLVM and no GPU, and is bit-reproducible).

TRANCE's solids on a grey plane under a key light and a soft sky; the camera stands at the same height and distance in
every view and turns about the vertical axis. `render_many` spreads pictures over processes, one thread each.
"""

import io
import math
import multiprocessing
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from tvr.scene import RADIUS, Scene, SceneObject

AZIMUTH_DEG = {"center": 0.0, "left": -45.0, "right": 45.0}
ELEVATION_DEG = 32.0
DISTANCE = 12.0
FIELD_OF_VIEW_DEG = 36.0  # horizontal
LOOK_AT = (0.0, 0.0, 0.3)

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

RenderTask = tuple[Scene, str, tuple[int, int], int, int]
"""scene, view, (width, height) in pixels, samples per pixel, noise seed."""


def camera_origin(view: str) -> tuple[float, float, float]:
    """Where the camera of *view* stands, in scene units; the centre camera looks along +y."""
    azimuth, elevation = math.radians(AZIMUTH_DEG[view]), math.radians(ELEVATION_DEG)
    ground = DISTANCE * math.cos(elevation)
    return ground * math.sin(azimuth), -ground * math.cos(azimuth), DISTANCE * math.sin(elevation) + LOOK_AT[2]


def project(position: tuple[float, float], height: float, view: str) -> tuple[float, float, float]:
    """Image coordinates of a point: x to the right and y up in half picture widths, and its depth in scene units."""
    eye = np.array(camera_origin(view))
    forward = np.array(LOOK_AT) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    offset = np.array((*position, height)) - eye
    depth = float(offset @ forward)
    scale = depth * math.tan(math.radians(FIELD_OF_VIEW_DEG / 2))
    return float(offset @ right) / scale, float(offset @ np.cross(right, forward)) / scale, depth


def render(scene: Scene, view: str, size: tuple[int, int], spp: int, seed: int) -> np.ndarray:
    """One picture `[height, width, 3]`, uint8 sRGB. *size* is (width, height) in pixels, *spp* samples per pixel."""
    mi = _mitsuba()
    description: dict[str, Any] = {**_stage(mi), "camera": _camera(mi, view, size, spp)}
    for index, item in enumerate(scene):
        for part, shape in _solid(mi, item).items():
            description[f"object_{index}_{part}"] = shape
    image = mi.render(mi.load_dict(description), seed=seed)
    bitmap = mi.Bitmap(image).convert(mi.Bitmap.PixelFormat.RGB, mi.Struct.Type.UInt8, srgb_gamma=True)
    return np.array(bitmap)


def render_many(tasks: Iterable[RenderTask], workers: int) -> Iterator[np.ndarray]:
    """Render *tasks* in order on *workers* processes; the pictures do not depend on their number."""
    if workers == 1:
        yield from map(_render_task, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_render_task, tasks, chunksize=8)


def to_png(picture: np.ndarray) -> bytes:
    """Encode a uint8 picture `[height, width, 3]` as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def _render_task(task: RenderTask) -> np.ndarray:
    return render(*task)


def _mitsuba() -> Any:
    import drjit
    import mitsuba as mi

    if mi.variant() != "scalar_rgb":
        mi.set_variant("scalar_rgb")
        drjit.set_thread_count(1)
    return mi


def _stage(mi: Any) -> dict[str, Any]:
    """Ground, sky and lights. Point lights and a smooth sky keep few samples per pixel nearly free of noise; the sky is
    darker at the horizon, so that metal has something to mirror."""
    ground = {"type": "diffuse", "reflectance": {"type": "rgb", "value": [0.5, 0.5, 0.5]}}
    rows = np.array([1.6, 1.3, 0.8, 0.2, 0.15, 0.1] + [0.1] * 6, dtype=np.float32)  # zenith to nadir, 15 degrees each
    sky = mi.Bitmap(np.broadcast_to(rows[:, None, None], (12, 24, 3)).copy())
    upright = mi.ScalarTransform4f().rotate([1, 0, 0], 90)
    return {
        "type": "scene",
        "integrator": {"type": "path", "max_depth": 5, "rr_depth": 4},
        "ground": {"type": "rectangle", "to_world": mi.ScalarTransform4f().scale([60, 60, 1]), "bsdf": ground},
        "sky": {"type": "envmap", "bitmap": sky, "to_world": upright},
        "key": {"type": "point", "position": [6.0, -5.0, 9.0], "intensity": {"type": "rgb", "value": 160.0}},
        "fill": {"type": "point", "position": [-7.0, -6.0, 6.0], "intensity": {"type": "rgb", "value": 45.0}},
    }


def _camera(mi: Any, view: str, size: tuple[int, int], spp: int) -> dict[str, Any]:
    return {
        "type": "perspective",
        "fov": FIELD_OF_VIEW_DEG,
        "fov_axis": "x",
        "to_world": mi.ScalarTransform4f().look_at(origin=camera_origin(view), target=LOOK_AT, up=[0, 0, 1]),
        "film": {"type": "hdrfilm", "width": size[0], "height": size[1], "rfilter": {"type": "box"}},
        "sampler": {"type": "multijitter", "sample_count": spp},
    }


def _solid(mi: Any, item: SceneObject) -> dict[str, dict[str, Any]]:
    """The named parts of a solid on the plane: a cube of diagonal 2r, a sphere of radius r, a cylinder 1.6r wide."""
    radius = RADIUS[item.size]
    x, y = item.position
    at = mi.ScalarTransform4f()
    bsdf = _material(item)
    if item.shape == "sphere":
        return {"body": {"type": "sphere", "center": [x, y, radius], "radius": radius, "bsdf": bsdf}}
    if item.shape == "cube":
        half = radius / math.sqrt(2.0)
        pose = at.translate([x, y, half]).rotate([0, 0, 1], item.rotation).scale(half)
        return {"body": {"type": "cube", "to_world": pose, "bsdf": bsdf}}
    half = 0.8 * radius
    body = {"type": "cylinder", "p0": [x, y, 0.0], "p1": [x, y, 2 * half], "radius": half, "bsdf": bsdf}
    lid = {"type": "disk", "to_world": at.translate([x, y, 2 * half]).scale(half), "bsdf": bsdf}
    return {"body": body, "lid": lid}


def _material(item: SceneObject) -> dict[str, Any]:
    """Rubber is matt, metal mirrors the scene in its colour, glass lets the ground shine through in its colour."""
    rgb = [(channel / 255.0) ** 2.2 for channel in COLOR_RGB[item.color]]
    color = {"type": "rgb", "value": rgb}
    if item.material == "rubber":
        return {"type": "twosided", "bsdf": {"type": "diffuse", "reflectance": color}}
    if item.material == "metal":
        metal = {"type": "roughconductor", "alpha": 0.1, "specular_reflectance": color, "material": "Ag"}
        return {"type": "twosided", "bsdf": metal}
    glow = {"type": "rgb", "value": [channel**0.5 for channel in rgb]}
    return {"type": "principled", "base_color": glow, "spec_trans": 0.9, "roughness": 0.05, "eta": 1.3}
