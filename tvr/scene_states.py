"""Pictures for supervised pretraining: each scene in several states, so that any two of its states make a pair.

A scene keeps its places; its states differ in attributes, some in one or two, some in many. n states seen from the
centre give n * n pairs for n pictures, which is why pretraining renders these and not separate pairs. Shards are
written whole and never again: a killed run goes on where it stopped, and the number of workers changes no picture.
"""

import json
import os
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvr.render import RenderTask, render_many
from tvr.sample_scenes import change_cell, sample_scene
from tvr.scene import ATTRIBUTES, Scene, SceneObject, apply

STATES_PER_SCENE = 4
SCENES_PER_SHARD = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class StatePicture:
    """One picture `[height, width, 3]` uint8 of one state of one scene."""

    scene_id: int
    state_id: int
    view: str
    scene: Scene
    picture: np.ndarray


def sample_states(rng: random.Random, num_objects: int, field_of_view: float) -> list[Scene]:
    """States 0 and 2 share a few attributes, 1 follows from 0 and 3 from 2 by one or two changes."""
    first = sample_scene(rng, num_objects, field_of_view)
    far = first
    for index in range(num_objects):
        for attribute in rng.sample(list(ATTRIBUTES), rng.choice((0, 1, 2, 3, 4))):
            far = apply(far, [change_cell(rng, far, index, attribute)])
    return [first, _nearby(rng, first), far, _nearby(rng, far)]


def make_states(
    folder: Path,
    *,
    num_scenes: int,
    objects: tuple[int, int],
    size: tuple[int, int],
    spp: int,
    field_of_view: float,
    seed: int,
    workers: int,
) -> Iterator[int]:
    """Render shards into *folder* until *num_scenes* are there; yields the number of scenes done after each shard."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, num_scenes, SCENES_PER_SHARD):
        last = min(first + SCENES_PER_SHARD, num_scenes)
        target = folder / f"{first:06d}-{last:06d}.npz"
        if not target.exists():
            rows, tasks = [], list[RenderTask]()
            for scene_id in range(first, last):
                for row, task in _sample_pictures(scene_id, objects, size, spp, field_of_view, seed):
                    rows.append(row)
                    tasks.append(task)
            _write_shard(target, rows, np.stack(list(render_many(tasks, workers))))
        yield last


def load_states(folder: Path) -> list[StatePicture]:
    """All pictures of *folder*, in order. Raises FileNotFoundError when there are none."""
    shards = sorted(folder.glob("*.npz"))
    if not shards:
        raise FileNotFoundError(f"no rendered states in {folder}; render them first")
    pictures = []
    for shard in shards:
        with np.load(shard) as data:
            rows, images = json.loads(str(data["rows"])), data["pictures"]
        for row, image in zip(rows, images, strict=True):
            scene = tuple(SceneObject(**{**item, "position": tuple(item["position"])}) for item in row.pop("scene"))
            pictures.append(StatePicture(**row, scene=scene, picture=image))
    return pictures


def _nearby(rng: random.Random, scene: Scene) -> Scene:
    cells = [(index, attribute) for index in range(len(scene)) for attribute in ATTRIBUTES]
    return apply(scene, [change_cell(rng, scene, *cell) for cell in rng.sample(cells, rng.choice((1, 2)))])


def _sample_pictures(
    scene_id: int, objects: tuple[int, int], size: tuple[int, int], spp: int, field_of_view: float, seed: int
) -> Iterator[tuple[dict[str, Any], RenderTask]]:
    """Every state from the centre, every second one from a side as well."""
    rng = random.Random(f"{seed}/{scene_id}")
    for state_id, scene in enumerate(sample_states(rng, rng.randint(*objects), field_of_view)):
        views = ["center"] + ([rng.choice(("left", "right"))] if rng.random() < 0.5 else [])
        for view in views:
            row = {"scene_id": scene_id, "state_id": state_id, "view": view, "scene": [asdict(o) for o in scene]}
            yield row, (scene, view, size, spp, rng.getrandbits(31), field_of_view)


def _write_shard(target: Path, rows: list[dict[str, Any]], pictures: np.ndarray) -> None:
    part = target.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, rows=json.dumps(rows), pictures=pictures)
    os.replace(part, target)
