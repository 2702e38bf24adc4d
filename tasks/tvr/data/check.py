"""What must hold of a data set, checked row by row with every picture decoded, and the balance of what it holds.

Rows are streamed; only ids, scene names and digests stay in memory. A *problem* is something that training or scoring
would trip over or be misled by; a *note* is something to know. A rendered data set (its recipe has `spp`) is held to
more than a converted one: each of its transformations must change a cell for good. TRANCE may change a cell twice or
undo a change; that is a note. Pairs may share a scene within a split, never across splits.
"""

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow
from PIL import Image

from records.pictures import decode
from records.task import SPLITS, Progress
from tasks.tvr.data.dataset import FEATURES, RECIPE, check_folder
from tasks.tvr.language.scene import (
    ATTRIBUTES,
    MAX_OBJECTS,
    MOVES,
    SETTINGS,
    VIEWS,
    Scene,
    SceneObject,
    Transformation,
    apply,
    count_differences,
    net_changes,
)

MAX_SHOWN = 20
"""Problems that `describe` spells out."""
_VOCABULARY = (*SETTINGS, *VIEWS, *(value for values in ATTRIBUTES.values() for value in values), *MOVES)
_ORDER = {value: place for place, value in enumerate((*_VOCABULARY, *ATTRIBUTES, "position"))}


class Problem(NamedTuple):
    """Something wrong with one row; *split* or *id* is empty where it concerns more than that."""

    split: str
    id: str
    reason: str

    def __str__(self) -> str:
        where = f"{self.split} {self.id}".strip()
        return f"{where}: {self.reason}" if where else self.reason


@dataclass(kw_only=True, slots=True)
class Balance:
    """How often what occurs in one split.

    *rows* counts all; the rest is over the rows whose objects and transformations can be read. *objects* are those in
    sight at first, *changes* those that can be seen (`net_changes`), *values* their new values by attribute, *sizes* of
    pictures are pairs like `160x120`.
    """

    rows: int = 0
    scene_names: set[str] = field(default_factory=set)
    settings: Counter[str] = field(default_factory=Counter)
    views: Counter[str] = field(default_factory=Counter)
    objects: Counter[int] = field(default_factory=Counter)
    changes: Counter[int] = field(default_factory=Counter)
    values: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    sizes: Counter[str] = field(default_factory=Counter)

    @property
    def scenes(self) -> int:
        return len(self.scene_names)

    @property
    def attributes(self) -> Counter[str]:
        return Counter({attribute: values.total() for attribute, values in self.values.items()})

    def add(self, row: Mapping[str, Any], scene: Scene, transformations: tuple[Transformation, ...]) -> None:
        """Count a row that was read with `read_scene` and `read_transformations`."""
        changes = net_changes(scene, transformations)
        self.scene_names |= {_scene_name(row)} - {""}
        self.settings[str(row["setting"])] += 1
        self.views[str(row["view"])] += 1
        self.objects[sum(item.in_sight for item in scene)] += 1
        self.changes[len(changes)] += 1
        for change in changes:
            self.values[change.attribute][change.value] += 1


@dataclass(kw_only=True, slots=True)
class CheckReport:
    """What `check` found in *folder*; the data set is sound when there are no *problems*."""

    folder: Path
    splits: dict[str, Balance] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(folder: Path, progress: Progress | None = None) -> CheckReport:
    """Check every row and picture of all splits in *folder*.

    Damage of any kind is a problem in the report. Raises FileNotFoundError when there is no data set.
    """
    check_folder(folder)
    report = CheckReport(folder=folder)
    rows_check = _RowsCheck(report, rendered=_check_recipe(report))
    opened = {split: rows for split in _split_names(report) if (rows := _open(report, split)) is not None}
    done, total = 0, sum(map(len, opened.values()))
    for split, rows in opened.items():
        report.splits[split] = Balance()
        for row in rows:
            rows_check.add(split, row)
            done += 1
            if progress is not None:
                progress(done, total)
    rows_check.finish()
    return report


def describe(report: CheckReport) -> list[str]:
    """The report as lines of text: the verdict, the balance of each split, the notes, and at most 20 problems."""
    total = sum(balance.rows for balance in report.splits.values())
    count = len(report.problems)
    verdict = f"{count} problem{'s'[: count != 1]}" if count else "OK"
    lines = [f"{report.folder}: {verdict}, {total} pairs in {len(report.splits)} splits"]
    for split, balance in report.splits.items():
        lines += ["", f"{split}: {balance.rows} pairs of {balance.scenes} scenes, pictures {_listed(balance.sizes)}"]
        lines += [f"  {name:<10} {_listed(counts)}" for name, counts in charts(balance).items()]
        lines += [f"  {name:<10} {_listed(balance.values[name])}" for name, _ in ordered(balance.attributes)]
    if report.notes:
        lines += ["", *(f"note: {note}" for note in report.notes)]
    if report.problems:
        lines += ["", *(f"problem: {problem}" for problem in report.problems[:MAX_SHOWN])]
    if count > MAX_SHOWN:
        lines.append(f"and {count - MAX_SHOWN} more problems")
    return lines


def charts(balance: Balance) -> dict[str, Counter[Any]]:
    """The counts that show at a glance whether a split is balanced, by title."""
    return {
        "setting": balance.settings,
        "view": balance.views,
        "objects": balance.objects,
        "changes": balance.changes,
        "attribute": balance.attributes,
    }


def ordered(counts: Mapping[Any, int]) -> list[tuple[Any, int]]:
    """The counts in the order of the vocabulary, numbers by size, unknown words last."""
    return sorted(counts.items(), key=lambda item: (_ORDER.get(item[0], len(_ORDER)), item[0]))


def _listed(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{value}: {count}" for value, count in ordered(counts)) or "none"


def read_recipe(folder: Path) -> dict[str, Any] | None:
    """The recipe beside a data set, None without one. Raises ValueError when it is not a JSON object."""
    path = folder / RECIPE
    if not path.exists():
        return None
    try:
        recipe = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}; write the data set again, or remove the file") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} holds no JSON object; write the data set again, or remove the file")
    return recipe


def read_scene(row: Mapping[str, Any]) -> Scene:
    """The initial scene of a row (see `dataset.FEATURES`). Raises ValueError with the first thing wrong in it."""
    objects = row["objects"] or []
    if not 1 <= len(objects) <= MAX_OBJECTS:
        raise ValueError(f"it has {len(objects)} objects; a scene has 1 to {MAX_OBJECTS}")
    return tuple(_read_object(index, item) for index, item in enumerate(objects))


def read_transformations(row: Mapping[str, Any], scene: Scene) -> tuple[Transformation, ...]:
    """The transformations of a row whose scene is *scene*. Raises ValueError with the first thing wrong in them."""
    nothing = {"index": None, "attribute": None, "value": None}
    transformations = tuple(Transformation(**(item or nothing)) for item in row["transformations"] or [])
    if not transformations:
        raise ValueError("it has no transformation; a pair needs at least one")
    for change in transformations:
        if change.index is None or not change.is_valid_in(scene):
            raise ValueError(f"transformation {change} is not possible in its scene of {len(scene)} objects")
    return transformations


def identity_reasons(row: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the id, setting and view of a row."""
    setting, view = row["setting"], row["view"]
    if setting not in SETTINGS:
        yield f"setting is {setting!r}; it must be one of {', '.join(SETTINGS)}"
    if view not in VIEWS:
        yield f"view is {view!r}; it must be one of {', '.join(VIEWS)}"
    elif view != "center" and setting in SETTINGS and setting != "view":
        yield f"view is {view!r}; only pairs of setting view may leave the center"
    parts = (row["id"] or "").split("/")
    if len(parts) != 3 or not parts[0] or parts[1:] != [setting, view]:
        yield f"the id is {row['id']!r}; it must be <scene>/{setting}/{view}, as its columns say"


def read_picture(image: Mapping[str, Any] | None) -> Image.Image:
    """A picture of a row, decoded to the last pixel. Raises ValueError when it is damaged or not RGB."""
    encoded = _bytes(image)
    if not encoded:
        raise ValueError("has no bytes; pictures must lie in the data set itself")
    picture = decode(encoded)
    if picture.mode != "RGB":
        raise ValueError(f"is of mode {picture.mode}; it must be RGB")
    return picture


class _RowsCheck:
    """Checks rows one after another, and remembers what must not come again."""

    def __init__(self, report: CheckReport, *, rendered: bool) -> None:
        self._report = report
        self._rendered = rendered
        self._split_of_id: dict[str, str] = {}
        self._split_of_scene: dict[str, str] = {}
        self._split_of_objects: dict[bytes, str] = {}
        self._first_of_size: dict[tuple[str, str], str] = {}
        self._overriding: list[str] = []  # ids of converted pairs in which not every transformation can be seen
        self._unchanged: list[str] = []  # ids of converted pairs that end as they began

    def add(self, split: str, row: Mapping[str, Any]) -> None:
        balance = self._report.splits[split]
        name = row["id"] or f"row {balance.rows}"
        balance.rows += 1
        reasons = [*identity_reasons(row), *self._uniqueness_reasons(split, row)]
        try:
            scene = read_scene(row)
            reasons += self._same_objects_reasons(split, row, scene)
            transformations = read_transformations(row, scene)
            balance.add(row, scene, transformations)
            reasons += self._change_reasons(name, row, scene, transformations)
        except ValueError as error:
            reasons.append(str(error))
        reasons += self._picture_reasons(split, name, row)
        self._report.problems += [Problem(split, name, reason) for reason in reasons]

    def finish(self) -> None:
        """Report what only shows over all rows."""
        for split, balance in self._report.splits.items():
            for size, _ in balance.sizes.most_common()[1:]:
                reason = f"pictures of {size}, here first; pairs by size are {_listed(balance.sizes)}"
                self._report.problems.append(Problem(split, self._first_of_size[split, size], reason))
        for ids, what in (
            (self._overriding, "pairs with a transformation that another one overrides or that changes nothing"),
            (self._unchanged, "pairs that end as they began, their transformations undone"),
        ):
            if ids:
                self._report.notes.append(f"{what}: {len(ids)}, first {ids[0]}")

    def _uniqueness_reasons(self, split: str, row: Mapping[str, Any]) -> Iterator[str]:
        if not row["id"]:
            return
        if row["id"] in self._split_of_id:
            yield f"the id occurs twice, first in split {self._split_of_id[row['id']]}; ids must be unique"
        self._split_of_id.setdefault(row["id"], split)
        if (first := self._split_of_scene.setdefault(_scene_name(row), split)) != split:
            yield f"scene {_scene_name(row)!r} is in split {first} too; a scene must stay within one split"

    def _same_objects_reasons(self, split: str, row: Mapping[str, Any], scene: Scene) -> Iterator[str]:
        """Another name does not make another scene: all attributes and positions are compared."""
        seen = repr([(str(item), item.position) for item in scene])
        digest = hashlib.sha256(seen.encode()).digest()[:16]
        first = self._split_of_objects.setdefault(digest, split)
        if first != split and self._split_of_scene.get(_scene_name(row), split) == split:
            yield f"the same objects stand in the same places in split {first}; a scene must stay within one split"

    def _change_reasons(
        self, name: str, row: Mapping[str, Any], scene: Scene, transformations: tuple[Transformation, ...]
    ) -> Iterator[str]:
        if row["setting"] == "basic" and len(transformations) != 1:
            yield f"it has {len(transformations)} transformations; a basic pair has exactly one"
        unseen = Counter(transformations) - Counter(net_changes(scene, transformations))
        changed = count_differences(scene, apply(scene, transformations)) > 0
        if self._rendered:
            for change in unseen:
                yield f"transformation {change} changes nothing, or another one overrides it"
        elif not changed:
            self._unchanged.append(name)
        elif unseen:
            self._overriding.append(name)
        if changed and _bytes(row["initial"]) and _bytes(row["initial"]) == _bytes(row["final"]):
            yield "both pictures are the same, though the scene changes"

    def _picture_reasons(self, split: str, name: str, row: Mapping[str, Any]) -> Iterator[str]:
        sizes = []
        for which in ("initial", "final"):
            try:
                sizes.append("{}x{}".format(*read_picture(row[which]).size))
            except ValueError as error:
                yield f"the {which} picture {error}"
        if len(sizes) == 2 and sizes[0] != sizes[1]:
            yield f"the initial picture is {sizes[0]} and the final one {sizes[1]}; make them equal"
        elif len(sizes) == 2:
            self._report.splits[split].sizes[sizes[0]] += 1
            self._first_of_size.setdefault((split, sizes[0]), name)


def _read_object(index: int, item: Mapping[str, Any] | None) -> SceneObject:
    if item is None:
        raise ValueError(f"object {index} is empty")
    position = tuple(item["position"] or ())
    numbers = (*position, item["rotation"])
    if len(position) != 2 or not all(isinstance(number, float) and math.isfinite(number) for number in numbers):
        raise ValueError(
            f"object {index} has position {position} and rotation {item['rotation']}; these must be finite numbers"
        )
    try:
        return SceneObject(**{**item, "position": position})
    except ValueError as error:
        raise ValueError(f"object {index}: {error}") from error


def _bytes(image: Mapping[str, Any] | None) -> bytes | None:
    return image["bytes"] if image else None


def _scene_name(row: Mapping[str, Any]) -> str:
    return (row["id"] or "").split("/")[0]


def _check_recipe(report: CheckReport) -> bool:
    """Whether the data set was rendered."""
    try:
        recipe = read_recipe(report.folder)
    except ValueError as error:
        report.problems.append(Problem("", "", str(error)))
        return False
    if recipe is None:
        report.notes.append(f"there is no {RECIPE}; the pairs are checked as converted ones")
    return recipe is not None and "spp" in recipe


def _split_names(report: CheckReport) -> list[str]:
    path = report.folder / "dataset_dict.json"
    try:
        names = list(map(str, json.loads(path.read_bytes())["splits"]))
    except (ValueError, LookupError, TypeError) as error:
        report.problems.append(Problem("", "", f"{path} does not list the splits: {error!r}; write the data set again"))
        return []
    report.notes += [f"there is no split {name}" for name in SPLITS if name not in names]
    return names


def _open(report: CheckReport, split: str) -> datasets.Dataset | None:
    """The rows of *split* with pictures left encoded; None, and a problem, when they cannot be read."""
    folder = report.folder / split
    try:
        rows = datasets.load_from_disk(folder)
        rows.data.validate(full=True)  # else a damaged file could end the process when a row is read
    except Exception as error:  # damaged files make the readers raise nearly anything, and all of it is the finding
        report.problems.append(Problem(split, "", f"{_damaged_file(folder)} cannot be read: {error}"))
        return None
    columns = {name: str(feature) for name, feature in rows.features.items()}
    wanted = {name: str(feature) for name, feature in FEATURES.items()}
    wrong = [name for name in {**wanted, **columns} if columns.get(name) != wanted.get(name)]
    for name in wrong:
        reason = f"column {name!r} is {columns.get(name, 'missing')}; it must be {wanted.get(name, 'left out')}"
        report.problems.append(Problem(split, "", f"{reason} (rows not checked)"))
    encoded = datasets.Image(decode=False)
    return None if wrong else rows.cast_column("initial", encoded).cast_column("final", encoded)


def _damaged_file(folder: Path) -> Path:
    """The first file of a split that cannot be read by itself, else the folder."""
    for path in (*(folder / name for name in ("state.json", "dataset_info.json")), *sorted(folder.glob("*.arrow"))):
        try:
            if path.suffix == ".json":
                json.loads(path.read_bytes())
            else:
                with pyarrow.memory_map(str(path)) as file:
                    pyarrow.ipc.open_stream(file).read_all().validate(full=True)
        except Exception:  # as in _open: it only decides which file to name
            return path
    return folder
