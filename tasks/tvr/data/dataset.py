"""Picture pairs as a Hugging Face `datasets` folder: schema, writing, loading, and a deterministic order.

A folder is written whole or not at all, with a `recipe.json` that says how its rows were made.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from datasets.arrow_writer import ArrowWriter

from records.samples import Prompt
from records.task import ReadPrompts
from tasks.tvr.language.gold import Gold
from tasks.tvr.language.prompt import build_messages
from tasks.tvr.language.scene import SceneObject, Transformation

logger = logging.getLogger(__name__)

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
RECIPE = "recipe.json"
"""Beside the rows: how they were made."""
_GOLDS_PER_BATCH = 1000


def write_folder(folder: Path, splits: Mapping[str, Iterable[Mapping[str, Any]]], recipe: Mapping[str, Any]) -> None:
    """Write the rows of each split (see `FEATURES`) and the *recipe* that they came from; whole or not at all.

    The same rows and recipe give the same bytes. A split without rows is left out. The caller is `alone_at` the folder
    where others could write it. Raises FileExistsError when it is there, ValueError when there is no row at all.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; remove it, or give another path")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _write_parts(part, splits, json.dumps(recipe, indent=2))
        os.replace(part / "done", folder)
    finally:
        shutil.rmtree(part)


@contextmanager
def alone_at(folder: Path) -> Iterator[None]:
    """Within it, no other process writes *folder*; waits for one that does. It may be there afterwards.

    The lock is a file beside it, which the kernel gives free however a process ends.
    """
    path = folder.with_name(f"{folder.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("another command is writing %s; waiting for it", folder)
                fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_still(path, lock.fileno()):  # else whoever had it removed it, and others may hold a new one
                try:
                    yield
                finally:
                    path.unlink()
                return


def _is_still(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


class PromptSet(ReadPrompts):
    """The prompts of one split; the pictures stay on disk, encoded."""

    def __init__(self, rows: datasets.Dataset) -> None:
        still_encoded = datasets.Image(decode=False)
        self._rows = rows.cast_column("initial", still_encoded).cast_column("final", still_encoded)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, number: int) -> Prompt:
        return _to_prompt(self._rows[number])


def load(folder: Path, split: str) -> PromptSet:
    """The prompts of *split*. Raises FileNotFoundError without a data set, ValueError when it has no such split."""
    return PromptSet(_load_rows(folder, split))


class GoldSet:
    """The truth of one split, without its pictures; read in batches, so that a million are read in seconds."""

    def __init__(self, rows: datasets.Dataset) -> None:
        self._rows = rows.select_columns(["id", "setting", "view", "objects", "transformations"]).with_format("arrow")

    def __len__(self) -> int:
        return len(self._rows)

    def ids(self) -> list[str]:
        batches = self._rows.select_columns(["id"]).iter(_GOLDS_PER_BATCH)
        return [sample_id for batch in batches for sample_id in _to_list(batch["id"], "id")]

    def __iter__(self) -> Iterator[tuple[str, Gold]]:
        """Id and truth of each row. Raises ValueError, with its id, on a row that makes no sense."""
        for batch in self._rows.iter(_GOLDS_PER_BATCH):
            yield from _to_golds(batch)


def load_golds(folder: Path, split: str) -> GoldSet:
    """The truth of *split*, for a scorer. Raises as `load` does."""
    return GoldSet(_load_rows(folder, split))


def _write_parts(part: Path, splits: Mapping[str, Iterable[Mapping[str, Any]]], recipe: str) -> None:
    """The folder-to-be, in `part/done`."""
    written = {}
    for split, rows in splits.items():
        with ArrowWriter(features=FEATURES, path=str(part / f"{split}.arrow"), writer_batch_size=64) as writer:
            for row in rows:
                writer.write(row)
            count, _ = writer.finalize()
        if count:
            stored = datasets.Dataset.from_file(str(part / f"{split}.arrow"), split=split)
            # Given, because the default fingerprint depends on the time, and the folder would not be reproducible.
            fingerprint = hashlib.sha256(f"{recipe}{split}".encode()).hexdigest()[:16]
            written[split] = datasets.Dataset(stored.data, info=stored.info, split=split, fingerprint=fingerprint)
    if not written:
        raise ValueError(f"there is no row to write to {part.with_suffix('')}")
    with _no_progress_bars():
        datasets.DatasetDict(written).save_to_disk(part / "done")
    (part / "done" / RECIPE).write_text(recipe + "\n")


def check_folder(folder: Path) -> None:
    """Raises FileNotFoundError without a data set in *folder*."""
    if not (folder / "dataset_dict.json").exists():
        raise FileNotFoundError(f"there is no data set in {folder}; render one, or correct the path")


def _load_rows(folder: Path, split: str) -> datasets.Dataset:
    check_folder(folder)
    splits = datasets.load_from_disk(folder)
    if split not in splits:
        raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(splits)}")
    return splits[split]


def _to_prompt(row: dict[str, Any]) -> Prompt:
    scene = tuple(SceneObject(**{**item, "position": tuple(item["position"])}) for item in row["objects"])
    changes = tuple(Transformation(**change) for change in row["transformations"])
    return Prompt(
        id=row["id"],
        images=(row["initial"]["bytes"], row["final"]["bytes"]),
        messages=build_messages(scene),
        gold=Gold(setting=row["setting"], view=row["view"], scene=scene, transformations=changes),
    )


def _to_golds(batch: pyarrow.Table) -> Iterator[tuple[str, Gold]]:
    """Whole columns become lists first: row by row, the conversion would cost more than everything else."""
    objects, num_objects = _flatten(batch, "objects")
    coordinates = _to_list(objects["position"].flatten(), "position")
    positions = zip(coordinates[0::2], coordinates[1::2], strict=True)
    looks = (_to_list(objects[name], name) for name in ("color", "shape", "size", "material", "rotation"))
    items = (
        SceneObject(color=color, shape=shape, size=size, material=material, rotation=rotation, position=position)
        for color, shape, size, material, rotation, position in zip(*looks, positions, strict=True)
    )
    changes, num_changes = _flatten(batch, "transformations")
    fields = (_to_list(changes[name], name) for name in Transformation._fields)
    transformations = map(Transformation._make, zip(*fields, strict=True))
    names = (_to_list(batch[name], name) for name in ("id", "setting", "view"))
    for sample_id, setting, view, objects_here, changes_here in zip(*names, num_objects, num_changes, strict=True):
        try:
            scene = tuple(islice(items, objects_here))
            changes_of = tuple(islice(transformations, changes_here))
            gold = Gold(setting=setting, view=view, scene=scene, transformations=changes_of)
            gold.check()
        except ValueError as error:
            raise ValueError(f"sample {sample_id}: {error}") from error
        yield sample_id, gold


def _flatten(batch: pyarrow.Table, name: str) -> tuple[dict[str, pyarrow.Array], list[int]]:
    """A column of lists of records: one array for each field of the records, and the length of each list."""
    lists = batch[name].combine_chunks()
    records = lists.flatten()
    return dict(zip(records.type.names, records.flatten(), strict=True)), _to_list(lists.value_lengths(), name)


def _to_list(values: pyarrow.Array | pyarrow.ChunkedArray, name: str) -> list[Any]:
    if values.null_count:
        raise ValueError(f"{name} is missing (null) in {values.null_count} places; write it")
    return values.to_pylist()


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
