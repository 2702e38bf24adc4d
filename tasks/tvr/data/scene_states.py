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
from functools import partial
from pathlib import Path

import numpy as np

from tasks.tvr.data.dataset import alone_at
from tasks.tvr.language.scene import ATTRIBUTES, Scene, SceneObject
from tasks.tvr.pictures.render import RENDERER, in_parallel, render_with_index
from tasks.tvr.pictures.sample_scenes import change_cells, sample_objects, sample_places

STATES_PER_SCENE = 4
SCENES_PER_SHARD = 20

Shard = tuple[Path, int, int]
"""A folder, and scenes from the first id to before the last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StatePicture:
    """One picture `[height, width, 3]` uint8 of one state of one scene, and which object each pixel shows.

    *index_map* `[height, width]` int8 holds the object's index in *scene*, -1 for the ground.
    """

    scene_id: int
    state_id: int
    view: str
    scene: Scene
    picture: np.ndarray
    index_map: np.ndarray


def sample_states(
    rng: random.Random, num_objects: int, field_of_view: float
) -> tuple[list[Scene], list[tuple[int, str]]]:
    """States 0 and 2 share a few attributes, 1 follows from 0 and 3 from 2 by one to three changes.

    Beside them the pictures to make, state and view: each state from the centre, every second one from a side as well.
    Every object is visible in each of these pictures, as in a data set.
    """

    def draw() -> list[Scene]:
        first = sample_objects(rng, num_objects)
        far = change_cells(
            rng,
            first,
            [
                (index, attribute)
                for index in range(num_objects)
                for attribute in rng.sample(list(ATTRIBUTES), rng.choice((0, 1, 2, 3, 4)))
            ],
        )
        return [first, _nearby(rng, first), far, _nearby(rng, far)]

    pictures = [
        (state_id, view)
        for state_id in range(STATES_PER_SCENE)
        for view in ["center"] + ([rng.choice(("left", "right"))] if rng.random() < 0.5 else [])
    ]
    return sample_places(rng, draw, pictures, field_of_view), pictures


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
    """Render shards into *folder* until *num_scenes* are there; yields the number that are, first and after each shard.

    Waits for another process that renders there. Raises ValueError when *folder* has pictures of another recipe.
    """
    recipe = {"objects": objects, "size": size, "spp": spp, "field_of_view": field_of_view, "seed": seed}
    with alone_at(folder):
        _claim(folder, json.dumps({**recipe, "renderer": RENDERER}) + "\n")
        missing = [shard for shard in _shards(folder, num_scenes) if not _file(*shard).exists()]
        done = num_scenes - sum(last - first for _, first, last in missing)
        yield done
        work = partial(_render_shard, objects=objects, size=size, spp=spp, field_of_view=field_of_view, seed=seed)
        for scenes in in_parallel(work, missing, workers):
            done += scenes
            yield done


def load_states(folder: Path, num_scenes: int) -> list[StatePicture]:
    """The pictures of the first *num_scenes* scenes in *folder*, in order. Raises FileNotFoundError."""
    shards = [_file(*shard) for shard in _shards(folder, num_scenes)]
    pictures = []
    for shard in shards:
        with np.load(shard) as data:
            rows, images, maps = json.loads(str(data["rows"])), data["pictures"], data["index_maps"]
        for row, image, index_map in zip(rows, images, maps, strict=True):
            scene = tuple(SceneObject(**{**item, "position": tuple(item["position"])}) for item in row.pop("scene"))
            pictures.append(StatePicture(**row, scene=scene, picture=image, index_map=index_map))
    return pictures


def _claim(folder: Path, recipe: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "recipe.json").exists():
        if any(folder.glob("*.npz")):
            raise ValueError(f"{folder} has pictures and no recipe.json that says of which recipe; remove the folder")
        (folder / "recipe.json").write_text(recipe)
    if (found := (folder / "recipe.json").read_text()) != recipe:
        raise ValueError(
            f"{folder} was rendered with {found.strip()}, not {recipe.strip()} as asked now; "
            "change the run file, remove the folder, or give another path"
        )


def _nearby(rng: random.Random, scene: Scene) -> Scene:
    cells = [(index, attribute) for index in range(len(scene)) for attribute in ATTRIBUTES]
    return change_cells(rng, scene, rng.sample(cells, rng.choice((1, 2, 3))))


def _render_shard(
    shard: Shard, objects: tuple[int, int], size: tuple[int, int], spp: int, field_of_view: float, seed: int
) -> int:
    """Write the pictures of the scenes of *shard*; returns their number. A scene depends on its id and *seed* alone."""
    _, first, last = shard
    rows, pictures, maps = [], [], []
    for scene_id in range(first, last):
        rng = random.Random(f"{seed}/{scene_id}")
        states, wanted = sample_states(rng, rng.randint(*objects), field_of_view)
        for state_id, view in wanted:
            scene = states[state_id]
            rows.append({"scene_id": scene_id, "state_id": state_id, "view": view, "scene": [asdict(o) for o in scene]})
            picture, shown = render_with_index(scene, view, size, spp, rng.getrandbits(31), field_of_view)
            pictures.append(picture)
            maps.append(shown.astype(np.int8))
    part = _file(*shard).with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, rows=json.dumps(rows), pictures=np.stack(pictures), index_maps=np.stack(maps))
    os.replace(part, _file(*shard))
    return last - first


def _shards(folder: Path, num_scenes: int) -> list[Shard]:
    starts = range(0, num_scenes, SCENES_PER_SHARD)
    return [(folder, first, min(first + SCENES_PER_SHARD, num_scenes)) for first in starts]


def _file(folder: Path, first: int, last: int) -> Path:
    return folder / f"{first:06d}-{last:06d}.npz"
