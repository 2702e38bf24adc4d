"""Picture pairs as a Hugging Face `datasets` folder: schema, rendering, loading, and a deterministic order.

A folder is written whole or not at all, beside a `recipe.json` that says how; the same recipe gives the same rows, byte
for byte, whatever the number of processes.
"""

import hashlib
import json
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, overload

import datasets
from datasets.arrow_writer import ArrowWriter

from tvr.config import DataConfig
from tvr.prompt import build_messages
from tvr.records import Gold, ImagePair, Prompt
from tvr.render import RenderTask, render_many, to_png
from tvr.sample_scenes import sample_pair
from tvr.scene import VIEWS, SceneObject, Transformation, apply

logger = logging.getLogger(__name__)

SPLITS = ("train", "test")
FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),  # <scene>/<setting>/<view>
        "setting": datasets.Value("string"),
        "view": datasets.Value("string"),  # of the final picture; the initial one is seen from the centre
        "initial": datasets.Image(),
        "final": datasets.Image(),
        "objects": datasets.List(  # the initial state; the place in the list is the object's index
            {
                "color": datasets.Value("string"),
                "shape": datasets.Value("string"),
                "size": datasets.Value("string"),
                "material": datasets.Value("string"),
                "position": datasets.List(datasets.Value("float64"), length=2),  # scene units
                "rotation": datasets.Value("float64"),  # degrees
            }
        ),
        "transformations": datasets.List(
            {"index": datasets.Value("int32"), "attribute": datasets.Value("string"), "value": datasets.Value("string")}
        ),
    }
)
_RECIPE = "recipe.json"

Progress = Callable[[int, int], None]
"""Called after every pair with the number of pairs done and their total."""


def ensure(config: DataConfig, progress: Progress | None = None) -> Path:
    """The folder that *config* describes, rendered if it is missing.

    A folder without a recipe was not rendered here and is taken as it is. Raises ValueError when the folder was
    rendered by another recipe.
    """
    if not config.path.exists():
        logger.info("rendering %d + %d pairs into %s", config.train, config.test, config.path)
        make(config, progress)
        return config.path
    recipe_path = config.path / _RECIPE
    if recipe_path.exists():
        found, wanted = json.loads(recipe_path.read_text()), config.recipe()
        keys = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
        if keys:
            rendered = ", ".join(f"{key} = {found.get(key)}" for key in keys)
            asked = ", ".join(f"{key} = {wanted.get(key)}" for key in keys)
            raise ValueError(
                f"{config.path} was rendered with {rendered}, but the run file asks for {asked}; "
                "change the run file, remove the folder, or give another path"
            )
    return config.path


def make(config: DataConfig, progress: Progress | None = None) -> None:
    """Render both splits into the folder `config.path`, which must not exist.

    Each scene is used once, so that the splits share none. Raises FileExistsError when the folder is there.
    """
    counts = dict(zip(SPLITS, (config.train, config.test), strict=True))
    done, total = 0, sum(counts.values())

    def counted(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        nonlocal done
        for row in rows:
            yield row
            done += 1
            if progress is not None:
                progress(done, total)

    splits = {split: counted(_render_rows(config, split, count)) for split, count in counts.items()}
    write_folder(config.path, splits, config.recipe())


def write_folder(folder: Path, splits: Mapping[str, Iterable[Mapping[str, Any]]], recipe: Mapping[str, Any]) -> None:
    """Write the rows of each split (see `FEATURES`) and the *recipe* that they came from; whole or not at all.

    The same rows and recipe give the same bytes. A split without rows is left out. Raises FileExistsError when the
    folder is there, ValueError when there is no row at all.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; remove it, or give another path")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    text = json.dumps(recipe, indent=2)
    written = {}
    for split, rows in splits.items():
        with ArrowWriter(features=FEATURES, path=str(part / f"{split}.arrow"), writer_batch_size=64) as writer:
            for row in rows:
                writer.write(row)
            count, _ = writer.finalize()
        if count:
            stored = datasets.Dataset.from_file(str(part / f"{split}.arrow"), split=split)
            # Given, because the default fingerprint depends on the time, and the folder would not be reproducible.
            fingerprint = hashlib.sha256(f"{text}{split}".encode()).hexdigest()[:16]
            written[split] = datasets.Dataset(stored.data, info=stored.info, split=split, fingerprint=fingerprint)
    if not written:
        raise ValueError(f"there is no row to write to {folder}")
    with _no_progress_bars():
        datasets.DatasetDict(written).save_to_disk(part / "done")
    (part / "done" / _RECIPE).write_text(text + "\n")
    os.replace(part / "done", folder)
    shutil.rmtree(part)


class PromptSet(Sequence[Prompt]):
    """The prompts of one split, made when asked for; the pictures stay on disk, encoded."""

    def __init__(self, rows: datasets.Dataset) -> None:
        still_encoded = datasets.Image(decode=False)
        self._rows = rows.cast_column("initial", still_encoded).cast_column("final", still_encoded)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> Prompt: ...
    @overload
    def __getitem__(self, at: slice) -> list[Prompt]: ...
    def __getitem__(self, at: int | slice) -> Prompt | list[Prompt]:
        if isinstance(at, slice):
            return [self[index] for index in range(len(self))[at]]
        return _to_prompt(self._rows[at])


def load(folder: Path, split: str) -> PromptSet:
    """The prompts of *split*. Raises FileNotFoundError without a data set, ValueError when it has no such split."""
    if not (folder / "dataset_dict.json").exists():
        raise FileNotFoundError(f"there is no data set in {folder}; render one, or correct the path")
    splits = datasets.load_from_disk(folder)
    if split not in splits:
        raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(splits)}")
    return PromptSet(splits[split])


class PromptOrder:
    """All prompts in a shuffled order, again and again, each time in another; a cursor says how many were given out.

    The order depends on the seed and the number of prompts alone, so that `seek` to the cursor of another run goes on
    exactly where that run stopped.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        if not prompts:
            raise ValueError("there are no prompts to order; the split is empty")
        self._prompts = prompts
        self._seed = seed
        self._cursor = 0
        self._shuffled: tuple[int, list[int]] = (-1, [])  # epoch, its order

    @property
    def cursor(self) -> int:
        return self._cursor

    def seek(self, cursor: int) -> None:
        """Go to the place where *cursor* prompts have been given out."""
        if cursor < 0:
            raise ValueError(f"the cursor is {cursor}; it counts prompts and cannot be negative")
        self._cursor = cursor

    def next(self) -> Prompt:
        epoch, place = divmod(self._cursor, len(self._prompts))
        if self._shuffled[0] != epoch:
            order = list(range(len(self._prompts)))
            random.Random(f"{self._seed}/order/{epoch}").shuffle(order)
            self._shuffled = (epoch, order)
        self._cursor += 1
        return self._prompts[self._shuffled[1][place]]


def _render_rows(config: DataConfig, split: str, count: int) -> Iterator[dict[str, Any]]:
    rows, tasks = [], list[RenderTask]()
    for number in range(count):
        rng = random.Random(f"{config.seed}/{split}/{number}")
        lap, place = divmod(number, len(config.settings))
        setting = config.settings[place]
        view = VIEWS[lap % len(VIEWS)] if setting == "view" else "center"
        num_changes = 1 if setting == "basic" else rng.randint(*config.changes)
        scene, changes = sample_pair(rng, rng.randint(*config.objects), num_changes)
        rows.append(
            {
                "id": f"{split}-{number}/{setting}/{view}",
                "setting": setting,
                "view": view,
                "objects": [asdict(item) for item in scene],
                "transformations": [change._asdict() for change in changes],
            }
        )
        # Each picture has noise of its own: with common noise, equal pixels would give the unchanged objects away.
        for state, camera in ((scene, "center"), (apply(scene, changes), view)):
            tasks.append((state, camera, config.size, config.spp, rng.getrandbits(31)))
    workers = config.workers or len(os.sched_getaffinity(0))
    pictures = map(to_png, render_many(tasks, workers))
    for row in rows:
        yield {**row, "initial": {"bytes": next(pictures)}, "final": {"bytes": next(pictures)}}


def _to_prompt(row: dict[str, Any]) -> Prompt:
    scene = tuple(SceneObject(**{**item, "position": tuple(item["position"])}) for item in row["objects"])
    changes = tuple(Transformation(**change) for change in row["transformations"])
    return Prompt(
        id=row["id"],
        pair=ImagePair(initial=row["initial"]["bytes"], final=row["final"]["bytes"], view=row["view"]),
        messages=build_messages(scene),
        gold=Gold(setting=row["setting"], scene=scene, transformations=changes),
    )


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
