"""TRANCE as downloaded, turned into our data set.

TRANCE is `data.jsonl`, one sample a line, with its pictures in `image/`; or `data.h5`, which holds the same packed and
knows the splits. Every sample is checked down to its last pixel: a damaged one is left out whole and reported, never
repaired. Only the first and the last state of a sample are looked at. Nothing is read from outside TRANCE's own files,
whatever they say: HDF5 can name files on this machine as the place of its pixels. Called by `star-r1 data trance`.
"""

import ast
import json
import math
import os
import re
import reprlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import h5py
import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from records.pictures import check_size, decode
from tasks.tvr.data.dataset import alone_at, write_folder
from tasks.tvr.language.scene import (
    ATTRIBUTES,
    COLORS,
    DIRECTIONS,
    MATERIALS,
    MAX_OBJECTS,
    MOVES,
    SHAPES,
    SIZES,
    VIEWS,
    Scene,
    SceneObject,
    Transformation,
    apply,
    count_differences,
)
from tasks.tvr.pictures.render import to_png

SPLITS = ("train", "val", "test")
CAMERAS = {"Camera_Center": "center", "Camera_Left": "left", "Camera_Right": "right"}
POSITION_UNIT = 0.15
"""Scene units of one unit of a recorded position."""
FARTHEST = 40
"""Largest recorded coordinate, either sign: the edge of TRANCE's plane."""
MAX_PROBLEM_LINES = 20

Row = dict[str, Any]


class TranceError(ValueError):
    """TRANCE cannot be converted: the file is unreadable, a sample is damaged and *strict* is set, or nothing is left.

    The message names the file or the sample.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A damaged sample. *idx* is its `idx`, or `line N` of `data.jsonl` when that cannot be read.

    >>> Problem(idx="7", reason="states.1 has no camera")
    Problem(idx='7', reason='states.1 has no camera')
    """

    idx: str
    reason: str


@dataclass(kw_only=True, slots=True)
class SplitSummary:
    """What became of one split: `read = kept + with_position + len(problems)` samples, and *rows* written.

    *with_position* counts the samples that were left out because an object moves.
    """

    read: int = 0
    kept: int = 0
    rows: int = 0
    with_position: int = 0
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class TranceSummary:
    """What became of TRANCE, by split, in the order read."""

    splits: dict[str, SplitSummary]


def convert(
    source: Path,
    folder: Path,
    *,
    split: str | None = None,
    max_samples: int | None = None,
    with_position: bool = False,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> TranceSummary:
    """Write the samples of *source* to *folder* as rows of `tasks.tvr.data.dataset`, whole or not at all.

    *source* is `data.h5`, `data.jsonl`, or the folder that holds one; of both, `data.h5` is read, because it knows the
    splits. Of `data.h5`, *split* is converted, or every split; all of `data.jsonl` becomes *split* ("test" if None).
    *max_samples* ends each split after so many kept samples. Samples in which an object moves are left out unless
    *with_position*; their pictures are then not looked at. Damaged samples, among them any but the first with one idx
    in one split, are left out and reported; with *strict* the first raises. *progress* gets the number of samples read
    and that of all samples.

    One sample gives up to five rows: `<idx>/basic/center` if it has exactly one transformation, `<idx>/event/center`,
    and `<idx>/view/<view>` for each final picture. One broken picture among these leaves out the sample. RGB files keep
    their bytes; RGBA files and arrays become RGB PNGs.

    Raises FileExistsError when *folder* is there, FileNotFoundError without TRANCE in *source*, TranceError as it says.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; remove it, or give another path")
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples is {max_samples}; it must be 1 or more")
    path = _find(source)
    recipe = {"source": "TRANCE", "file": path.name, "split": split, "max": max_samples, "with_position": with_position}
    with alone_at(folder), _opened(path, split) as origin:
        conversion = _Conversion(
            origin, max_samples=max_samples, with_position=with_position, strict=strict, progress=progress
        )
        write_folder(folder, {name: conversion.rows(name) for name in origin.sizes}, recipe)
    return conversion.summary


def describe(summary: TranceSummary) -> list[str]:
    """*summary* as lines for people: one per split, then the problems, at most `MAX_PROBLEM_LINES`, then their rest."""
    lines = [
        f"{name}: {part.read} samples read, {part.kept} kept, {part.rows} rows; "
        f"left out: {part.with_position} with a change of position, {len(part.problems)} damaged"
        for name, part in summary.splits.items()
    ]
    problems = [
        f"  {name} {problem.idx}: {problem.reason}"
        for name, part in summary.splits.items()
        for problem in part.problems
    ]
    lines += problems[:MAX_PROBLEM_LINES]
    if rest := len(problems[MAX_PROBLEM_LINES:]):
        lines.append(f"  and {rest} more")
    return lines


class _Damage(Exception):
    """Why one sample cannot be used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """Where one sample stands. *key* is its key in HDF5, which must be its idx; *read* raises _Damage."""

    place: str
    key: str | None
    read: Callable[[], str | bytes]


class _Lines:
    """`data.jsonl` and the folder `image` beside it."""

    def __init__(self, path: Path, split: str) -> None:
        if not re.fullmatch(r"\w+", split, re.ASCII):
            raise TranceError(f"the split is {split!r}; its name must be of letters, digits and underscores")
        self.path = path
        with path.open("rb") as file:
            self.sizes = {split: sum(bool(line.strip()) for line in file)}

    def entries(self, split: str) -> Iterator[_Entry]:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _Entry(place=f"line {number}", key=None, read=partial(bytes, line))

    def picture(self, split: str, name: str) -> bytes:
        folder = (self.path.parent / "image").resolve()
        try:
            file = Path(os.path.realpath(folder / name, strict=True))
            if file.parent != folder:
                raise _Damage(f"image/{name} is a link to a file elsewhere; only what lies in image/ is read")
            data = file.read_bytes()
        except FileNotFoundError:
            raise _Damage(f"image/{name} is missing") from None
        except OSError as error:
            raise _Damage(f"image/{name} cannot be read: {error.strerror}") from error
        return _rgb_bytes(data, name)


class _Packed:
    """`data.h5`: for each split a group with `keys`, `data/<key>` and `image/<name>`."""

    def __init__(self, path: Path, file: h5py.File, split: str | None) -> None:
        self.path = path
        self._file = file
        splits = [name for name in SPLITS if self._has_group(file, name)]
        if not splits:
            raise TranceError(f"{path} has none of the groups {', '.join(SPLITS)}; it is not TRANCE's data.h5")
        if split is not None and split not in splits:
            raise TranceError(f"{path} has no split {split!r}; it has {', '.join(splits)}")
        self._keys = {name: self._read_keys(name) for name in (splits if split is None else [split])}
        self.sizes = {name: len(keys) for name, keys in self._keys.items()}

    def entries(self, split: str) -> Iterator[_Entry]:
        for key in self._keys[split]:
            yield _Entry(place=key, key=key, read=partial(self._read_sample, split, key))

    def picture(self, split: str, name: str) -> bytes:
        with _reading(f"image/{name}"):
            stored = _member(self._file[split]["image"], name)
            if not isinstance(stored, h5py.Dataset):
                raise _Damage(f"image/{name} is missing")
            if stored.ndim != 3 or stored.shape[2] not in (3, 4) or 0 in stored.shape or stored.dtype != np.uint8:
                raise _Damage(
                    f"image/{name} is {stored.dtype} {stored.shape}; it must be uint8 (height, width, 3 or 4 channels)"
                )
            check_size(stored.shape[1], stored.shape[0])
            array = stored[..., :3]
        return to_png(array)

    def _read_keys(self, split: str) -> list[str]:
        group = self._file[split]
        for name in ("data", "image"):
            if not self._has_group(group, name):
                raise TranceError(f"{self.path} has no group {split}/{name}; download it again")
        try:
            text = _read_text(group, "keys")
            keys = ast.literal_eval(text.decode() if isinstance(text, bytes) else text)
        except (_Damage, ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise TranceError(f"{self.path}: {split}/keys cannot be read: {error}; download it again") from error
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise TranceError(f"{self.path}: {split}/keys is not the text of a list of strings; download it again")
        return keys

    def _has_group(self, parent: h5py.Group, name: str) -> bool:
        try:
            return isinstance(_member(parent, name), h5py.Group)
        except _Damage as error:
            raise TranceError(f"{self.path}: {error}; download it again") from error

    def _read_sample(self, split: str, key: str) -> str | bytes:
        if not _is_plain(key):
            raise _Damage("the key is not a plain name")
        return _read_text(self._file[split]["data"], key)


class _Conversion:
    """One pass over the splits of *origin*; *summary* grows with the rows taken."""

    def __init__(
        self,
        origin: _Lines | _Packed,
        *,
        max_samples: int | None,
        with_position: bool,
        strict: bool,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.summary = TranceSummary(splits={name: SplitSummary() for name in origin.sizes})
        self._origin = origin
        self._max_samples = max_samples
        self._with_position = with_position
        self._strict = strict
        self._progress = progress

    def rows(self, split: str) -> Iterator[Row]:
        """The rows of *split*. Raises TranceError when the last split ends and there was no row in any."""
        part = self.summary.splits[split]
        seen: set[str] = set()
        for entry in self._origin.entries(split):
            yield from self._sample_rows(split, entry, seen)
            self._report()
            if part.kept == self._max_samples:
                break
        if split == list(self.summary.splits)[-1] and not any(each.kept for each in self.summary.splits.values()):
            raise TranceError(self._nothing_left())

    def _sample_rows(self, split: str, entry: _Entry, seen: set[str]) -> list[Row]:
        """The rows of one sample, none if it is left out; counted and reported in the summary."""
        part = self.summary.splits[split]
        part.read += 1
        idx = entry.place
        try:
            raw = _parse(entry.read())
            idx = _check_idx(raw, entry)
            if idx in seen:
                raise _Damage("an earlier sample has the same idx")
            seen.add(idx)
            sample = _check_sample(raw)
            if not self._with_position and any(change.attribute == "position" for change in sample.transformations):
                part.with_position += 1
                return []
            rows = list(_to_rows(sample, partial(self._origin.picture, split)))
        except _Damage as damage:
            if self._strict:
                raise TranceError(f"{self._origin.path.name}, {split} {idx}: {damage}") from damage
            part.problems.append(Problem(idx=idx, reason=str(damage)))
            return []
        part.kept += 1
        part.rows += len(rows)
        return rows

    def _report(self) -> None:
        if self._progress is not None:
            done = sum(part.read for part in self.summary.splits.values())
            self._progress(done, sum(self._origin.sizes.values()))

    def _nothing_left(self) -> str:
        parts = self.summary.splits.values()
        problems = [problem for part in parts for problem in part.problems]
        first = f"; the first: {problems[0].idx}: {problems[0].reason}" if problems else ""
        return (
            f"nothing is left of {self._origin.path}: {sum(part.read for part in parts)} samples read, "
            f"{sum(part.with_position for part in parts)} left out for a change of position, "
            f"{len(problems)} damaged{first}"
        )


def _find(source: Path) -> Path:
    if source.is_dir():
        for name in ("data.h5", "data.jsonl"):
            if (source / name).is_file():
                return source / name
        raise FileNotFoundError(
            f"there is neither data.h5 nor data.jsonl in {source}; unpack TRANCE, or correct the path"
        )
    if not source.exists():
        raise FileNotFoundError(f"{source} is missing; give the folder of TRANCE, its data.h5, or its data.jsonl")
    if source.suffix not in (".h5", ".jsonl"):
        raise TranceError(f"{source} is neither a .h5 nor a .jsonl file; give TRANCE's data.h5 or data.jsonl")
    return source


@contextmanager
def _opened(path: Path, split: str | None) -> Iterator[_Lines | _Packed]:
    if path.suffix == ".jsonl":
        yield _Lines(path, "test" if split is None else split)
        return
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise TranceError(f"{path} cannot be read as HDF5: {error}") from error
    with file:
        yield _Packed(path, file, split)


def _member(group: h5py.Group, name: str) -> Any:
    """What is stored in *group* itself under *name*, None without. Raises _Damage for what is kept anywhere else."""
    link = group.get(name, getlink=True)
    if link is None:
        return None
    where = f"{group.name.rstrip('/')}/{name}"
    if not isinstance(link, h5py.HardLink):
        raise _Damage(f"{where} is a link to elsewhere; only what lies in the file itself is read")
    stored = group[name]
    if isinstance(stored, h5py.Dataset) and (stored.external or stored.is_virtual):
        raise _Damage(f"{where} keeps its content in other files; only what lies in the file itself is read")
    return stored


def _read_text(group: h5py.Group, name: str) -> str | bytes:
    """A scalar text data set. Raises _Damage."""
    with _reading(name):
        stored = _member(group, name)
        value = stored[()] if isinstance(stored, h5py.Dataset) and stored.shape == () else None
    if not isinstance(value, str | bytes):
        raise _Damage(f"there is no text {name!r} in the group {group.name}")
    return value


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """All that HDF5 raises when what is stored is damaged becomes _Damage."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError) as error:
        raise _Damage(f"{name} cannot be read: {error}") from error


# A sample as recorded. Strict: nothing is converted. Keys that are not named here are not needed.


def _one_of(values: Collection[str]) -> AfterValidator:
    def check(value: str) -> str:
        if value not in values:
            raise PydanticCustomError("vocabulary", "Input is not one of {values}", {"values": ", ".join(values)})
        return value

    return AfterValidator(check)


def _check_name(name: str) -> str:
    if not _is_plain(name):
        raise PydanticCustomError("name", "Input is not a plain file name")
    return name


def _is_plain(name: str) -> bool:
    """Whether *name* can only name something in its own folder or group."""
    return re.fullmatch(r"\w[\w.-]*", name, re.ASCII) is not None


class _Recorded(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class _Object(_Recorded):
    color: Annotated[str, _one_of(COLORS)]
    shape: Annotated[str, _one_of(SHAPES)]
    size: Annotated[str, _one_of(SIZES)]
    material: Annotated[str, _one_of(MATERIALS)]
    position: list[Annotated[int, Field(ge=-FARTHEST, le=FARTHEST)]] = Field(min_length=2, max_length=2)
    rotation: float = Field(default=0.0, allow_inf_nan=False)  # radians; only the renderable version has it


class _State(_Recorded):
    objects: list[_Object] = Field(min_length=1, max_length=MAX_OBJECTS)
    images: dict[Annotated[str, _one_of(CAMERAS)], Annotated[str, AfterValidator(_check_name)]]


class _Change(_Recorded):
    obj_idx: int
    attr: Annotated[str, _one_of((*ATTRIBUTES, "position"))]
    val: Any


class _Sample(_Recorded):
    idx: int = Field(ge=0)
    states: list[Any] = Field(min_length=2)
    transformations: list[_Change]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Checked:
    """A sample whose transformations lead from its first state to its last. Pictures by name, *finals* by view."""

    idx: int
    scene: Scene
    transformations: tuple[Transformation, ...]
    initial: str
    finals: dict[str, str]


_Model = TypeVar("_Model", bound=_Recorded)


def _parse(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _Damage(f"it is not JSON: {error.msg} at character {error.pos}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, an endless number, too many brackets
        raise _Damage(f"it is not JSON: {error}") from error


def _check_idx(raw: Any, entry: _Entry) -> str:
    """The idx of a sample, or the place of *entry* when it cannot be read."""
    idx = raw.get("idx") if isinstance(raw, dict) else None
    if type(idx) is not int or idx < 0:
        return entry.place
    if entry.key is not None and entry.key != str(idx):
        raise _Damage(f"its idx is {_shown(idx)}; it must be the key")
    return str(idx)


def _check_sample(raw: Any) -> _Checked:
    """Everything about a sample but its pictures. Raises _Damage."""
    sample = _validate(_Sample, raw, "")
    last = f"states.{len(sample.states) - 1}"
    before, after = _validate(_State, sample.states[0], "states.0"), _validate(_State, sample.states[-1], last)
    if "Camera_Center" not in before.images:
        raise _Damage("states.0.images has no Camera_Center")
    if not after.images:
        raise _Damage(f"{last}.images has no picture")
    scene, final = _to_scene(before), _to_scene(after)
    if len(scene) != len(final):
        raise _Damage(f"states.0 has {len(scene)} objects, {last} has {len(final)}")
    changes = tuple(
        _to_transformation(change, f"transformations.{place}", len(scene))
        for place, change in enumerate(sample.transformations)
    )
    _check_outcome(apply(scene, changes), final, last)
    finals = {CAMERAS[camera]: name for camera, name in after.images.items()}
    return _Checked(
        idx=sample.idx,
        scene=scene,
        transformations=changes,
        initial=before.images["Camera_Center"],
        finals={view: finals[view] for view in VIEWS if view in finals},
    )


def _validate(model: type[_Model], raw: Any, place: str) -> _Model:
    """*raw* as *model*; *place* names it. Raises _Damage with the first thing wrong."""
    try:
        return model.model_validate(raw)
    except ValidationError as invalid:
        error = invalid.errors(include_url=False)[0]
    path = list(error["loc"])
    if path and path[-1] == "[key]":  # of a dict; its text is shown as the input
        path = path[:-2]
    where = ".".join(filter(None, [place, *map(str, path)])) or "the sample"
    if error["type"] == "missing":
        raise _Damage(f"{where} is missing")
    message = error["msg"].partition(" or instance of")[0].replace(" after validation", "")
    if message.startswith("Input"):
        message = message.replace("Input", _shown(error["input"]), 1)
    raise _Damage(f"{where}: {message}")


def _to_scene(state: _State) -> Scene:
    return tuple(
        SceneObject(
            color=item.color,
            shape=item.shape,
            size=item.size,
            material=item.material,
            position=(round(item.position[0] * POSITION_UNIT, 6), round(item.position[1] * POSITION_UNIT, 6)),
            rotation=round(math.degrees(item.rotation), 6),
        )
        for item in state.objects
    )


def _to_transformation(change: _Change, place: str, num_objects: int) -> Transformation:
    if not 0 <= change.obj_idx < num_objects:
        raise _Damage(f"{place}.obj_idx: {_shown(change.obj_idx)} is not the index of one of {num_objects} objects")
    if change.attr == "position":
        match change.val:
            case [str(direction), int(steps)] if f"{direction}-{steps}" in MOVES:  # a bool is written True
                return Transformation(change.obj_idx, change.attr, f"{direction}-{steps}")
        wanted = f"[direction, 1 or 2] with a direction of {', '.join(DIRECTIONS)}"
        raise _Damage(f"{place}.val: {_shown(change.val)} is not {wanted}")
    if change.val not in ATTRIBUTES[change.attr]:
        wanted = ", ".join(ATTRIBUTES[change.attr])
        raise _Damage(f"{place}.val: {_shown(change.val)} is not one of {wanted}")
    return Transformation(change.obj_idx, change.attr, change.val)


def _check_outcome(reached: Scene, final: Scene, last: str) -> None:
    """Raises _Damage that names the first cell in which *reached* is not the recorded *final* state."""
    for index, (made, recorded) in enumerate(zip(reached, final, strict=True)):
        if count_differences((made,), (recorded,)):
            cells = (name for name in ATTRIBUTES if getattr(made, name) != getattr(recorded, name))
            name = next(cells, "position")
            raise _Damage(
                f"the transformations make the {name} of object {index} {getattr(made, name)}, "
                f"{last} has {getattr(recorded, name)}"
            )


def _to_rows(sample: _Checked, picture: Callable[[str], bytes]) -> Iterator[Row]:
    initial = {"bytes": picture(sample.initial)}
    finals = {view: {"bytes": picture(name)} for view, name in sample.finals.items()}
    pairs = [("basic", "center")] if len(sample.transformations) == 1 else []
    pairs += [("event", "center"), *(("view", view) for view in finals)]
    objects = [asdict(item) for item in sample.scene]
    transformations = [change._asdict() for change in sample.transformations]
    for setting, view in pairs:
        if view in finals:
            yield {
                "id": f"{sample.idx}/{setting}/{view}",
                "setting": setting,
                "view": view,
                "initial": initial,
                "final": finals[view],
                "objects": objects,
                "transformations": transformations,
            }


def _rgb_bytes(data: bytes, name: str) -> bytes:
    """The bytes of an RGB picture as they are, those of an RGBA one as RGB PNG. Raises _Damage."""
    try:
        picture = decode(data)
    except ValueError as error:
        raise _Damage(f"image/{name} {error}") from error
    if picture.mode == "RGB":
        return data
    if picture.mode != "RGBA":
        raise _Damage(f"image/{name} has mode {picture.mode}; it must be RGB or RGBA")
    return to_png(np.asarray(picture)[..., :3])


def _shown(value: Any) -> str:
    return reprlib.repr(value)[:80]
