"""Rendered data sets: every pair is made by itself from the recipe and its number, in parallel, resumable after a kill.

Pairs are rendered in small blocks, each written whole beside the folder-to-be. A killed run goes on with the blocks
that are missing, and the folder is byte-identical for the same recipe, whatever the number of processes and of kills.
"""

import json
import logging
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets.arrow_writer import ArrowWriter

from records.task import SPLITS, Progress
from tasks.tvr.data.config import DataConfig
from tasks.tvr.data.dataset import FEATURES, RECIPE, alone_at, write_folder
from tasks.tvr.language.scene import VIEWS, apply
from tasks.tvr.pictures.render import in_parallel, render, to_png
from tasks.tvr.pictures.sample_scenes import sample_pair

logger = logging.getLogger(__name__)

PAIRS_PER_BLOCK = 8

Block = tuple[str, int, int]
"""A split, and its pairs from the first number to before the last."""


def ensure(config: DataConfig, progress: Progress | None = None) -> Path:
    """The folder that *config* describes, rendered if it is missing; waits for another process that renders it.

    A folder that was not rendered here, such as a converted one, is taken as it is. Raises ValueError when the folder
    was rendered by another recipe.
    """
    if not config.path.exists():
        with alone_at(config.path):
            if not config.path.exists():
                logger.info("rendering %d + %d pairs into %s", config.train, config.test, config.path)
                _make(config, progress)
    if _is_rendered(config.path) and (differing := how_recipes_differ(config.path, config.recipe())):
        raise ValueError(
            f"{config.path} was rendered with {differing}; change the run file, remove the folder, or give another path"
        )
    return config.path


def make(config: DataConfig, progress: Progress | None = None) -> None:
    """Render both splits into the folder `config.path`, which must not exist; goes on where a killed call stopped.

    Each scene is used once, so that the splits share none. Raises FileExistsError when the folder is there, or another
    process makes it meanwhile, ValueError when what a killed call left beside it is of another recipe.
    """
    if config.path.exists():
        raise FileExistsError(f"{config.path} exists; remove it, or give another path")
    with alone_at(config.path):
        if config.path.exists():
            raise FileExistsError(f"{config.path} was written by another command meanwhile; it is complete")
        _make(config, progress)


def _make(config: DataConfig, progress: Progress | None) -> None:
    """`make`, where nobody else does."""
    unfinished = _claim(config)
    counts = dict(zip(SPLITS, (config.train, config.test), strict=True))
    blocks = [
        (split, first, min(first + PAIRS_PER_BLOCK, count))
        for split, count in counts.items()
        for first in range(0, count, PAIRS_PER_BLOCK)
    ]
    missing = [block for block in blocks if not _file(unfinished, block).exists()]
    done, total = sum(counts.values()) - sum(last - first for _, first, last in missing), sum(counts.values())
    if done:
        logger.info("%d of %d pairs are in %s already", done, total, unfinished)
    for split, first, last in in_parallel(partial(_render_block, config, unfinished), missing, config.workers):
        logger.debug("rendered %s %d to %d", split, first, last)
        done += last - first
        if progress is not None:
            progress(done, total)
    rows = {split: _rows(unfinished, [block for block in blocks if block[0] == split]) for split in counts}
    write_folder(config.path, rows, config.recipe())
    shutil.rmtree(unfinished)


def _claim(config: DataConfig) -> Path:
    """The folder for blocks, which belongs to one recipe."""
    unfinished = config.path.with_name(config.path.name + ".unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    if not (unfinished / RECIPE).exists():
        part = unfinished / f"{RECIPE}.{os.getpid()}"
        part.write_text(json.dumps(config.recipe(), indent=2) + "\n")
        os.replace(part, unfinished / RECIPE)
    if differing := how_recipes_differ(unfinished, config.recipe()):
        raise ValueError(
            f"{unfinished} holds pairs of a stopped run with {differing}; "
            "give the arguments of that run to go on, or remove the folder"
        )
    return unfinished


def _is_rendered(folder: Path) -> bool:
    recipe = folder / RECIPE
    return recipe.exists() and "spp" in json.loads(recipe.read_text())


def how_recipes_differ(folder: Path, wanted: Mapping[str, Any]) -> str:
    """What the recipe in *folder* says and what is *wanted*, where they differ; empty if they agree."""
    found = json.loads((folder / RECIPE).read_text())
    keys = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
    if not keys:
        return ""
    said = ", ".join(f"{key} = {found.get(key)}" for key in keys)
    return f"{said}, not {', '.join(f'{key} = {wanted.get(key)}' for key in keys)} as asked now"


def _file(unfinished: Path, block: Block) -> Path:
    split, first, _ = block
    return unfinished / f"{split}-{first:08d}.arrow"


def _render_block(config: DataConfig, unfinished: Path, block: Block) -> Block:
    split, first, last = block
    target = _file(unfinished, block)
    part = target.with_name(f"{target.name}.{os.getpid()}")
    with ArrowWriter(features=FEATURES, path=str(part)) as writer:
        for number in range(first, last):
            writer.write(render_pair(config, split, number))
        writer.finalize()
    os.replace(part, target)
    return block


def _rows(unfinished: Path, blocks: list[Block]) -> Iterator[Mapping[str, Any]]:
    still_encoded = datasets.Image(decode=False)
    for block in blocks:
        rows = datasets.Dataset.from_file(str(_file(unfinished, block)))
        yield from rows.cast_column("initial", still_encoded).cast_column("final", still_encoded)


def render_pair(config: DataConfig, split: str, number: int) -> dict[str, Any]:
    """Row *number* of *split*; depends on nothing but the arguments."""
    rng = random.Random(f"{config.seed}/{split}/{number}")
    lap, place = divmod(number, len(config.settings))
    setting = config.settings[place]
    view = VIEWS[lap % len(VIEWS)] if setting == "view" else "center"
    num_changes = 1 if setting == "basic" else rng.randint(*config.changes)
    scene, changes = sample_pair(rng, rng.randint(*config.objects), num_changes, view, config.field_of_view)

    def picture(state: Any, camera: str) -> dict[str, bytes]:
        # Each picture has noise of its own: with common noise, equal pixels would give the unchanged objects away.
        seed = rng.getrandbits(31)
        return {"bytes": to_png(render(state, camera, config.size, config.spp, seed, config.field_of_view))}

    return {
        "id": f"{split}-{number}/{setting}/{view}",
        "setting": setting,
        "view": view,
        "initial": picture(scene, "center"),
        "final": picture(apply(scene, changes), view),
        "objects": [asdict(item) for item in scene],
        "transformations": [change._asdict() for change in changes],
    }
