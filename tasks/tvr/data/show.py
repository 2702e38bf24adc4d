"""A data set as one HTML page to look through: pairs side by side, the changed objects marked, the balance in bars.

The page holds everything itself and needs no network and no scripts. Marks are SVG laid over the pictures, which stay
as they are. Only pictures of the present renderer are marked: TRANCE jitters its cameras without saying where they
stood, and an older renderer had other cameras.
"""

import base64
import math
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import datasets
import jinja2
from PIL import Image

from tasks.tvr.data.check import (
    Balance,
    charts,
    identity_reasons,
    ordered,
    read_picture,
    read_recipe,
    read_scene,
    read_transformations,
)
from tasks.tvr.data.dataset import FEATURES, check_folder
from tasks.tvr.language.scene import RADIUS, SETTINGS, VIEWS, Scene, SceneObject, Transformation, apply, net_changes
from tasks.tvr.pictures.render import COLOR_RGB, RENDERER, project

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels of the picture."""
Group = tuple[str, str]
"""Setting and view."""
Place = tuple[str, int]
"""Split and row."""
T = TypeVar("T")

FONT_SIZE = 0.045
"""Of the labels, in picture widths."""


class Label(NamedTuple):
    """Text over a picture; *x* is its middle and *y* its base line, in pixels of the picture."""

    text: str
    x: float
    y: float


class Picture(NamedTuple):
    """One picture of a pair: *marks* are boxes around the changed objects, *labels* name them, *indices* the others."""

    title: str
    source: str
    width: int
    height: int
    marks: list[Box]
    labels: list[Label]
    indices: list[Label]


class Pair(NamedTuple):
    """One pair as the page shows it; *overridden* are transformations that cannot be seen, in words."""

    id: str
    split: str
    pictures: list[Picture]
    changes: list[str]
    overridden: list[str]
    objects: list[tuple[SceneObject, str, bool]]  # with its colour for CSS, and whether it changes


def write_page(folder: Path, out: Path, *, split: str | None = None, max_pairs: int = 60) -> int:
    """Write the page *out* about the data set in *folder*, all splits of it or one; returns how many pairs it shows.

    The bars count every pair. The groups of pairs (setting and view) share *max_pairs* evenly, and so do the splits
    within a group; of each the first pairs are shown. An old page is replaced, whole or not at all. Raises
    FileNotFoundError without a data set, IsADirectoryError for a page that is a folder, ValueError for a split that is
    not there or a row that cannot be read.
    """
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; name the page, for example {out / 'pairs.html'}")
    if max_pairs < 1:
        raise ValueError(f"max_pairs is {max_pairs}; a page shows at least 1 pair")
    splits = _open_splits(folder, split)
    field_of_view = _known_field_of_view(read_recipe(folder))
    balances = {name: Balance() for name in splits}
    groups: dict[Group, dict[str, list[Place]]] = defaultdict(lambda: {name: [] for name in splits})
    for name, rows in splits.items():
        for number, row in enumerate(rows.remove_columns(["initial", "final"])):
            groups[_count(balances[name], row, f"{folder / name}, row {number}")][name].append((name, number))
    turns = {group: list(_in_turn(places.values())) for group, places in groups.items()}
    chosen = set(islice(_in_turn(turns.values()), max_pairs))
    shown = [
        (setting, view, len(places), [_pair(splits, place, field_of_view) for place in places if place in chosen])
        for (setting, view), places in sorted(turns.items(), key=lambda item: _rank(item[0]))
    ]
    page = _PAGE.render(
        name=folder.resolve().name,
        marked=field_of_view is not None,
        splits={name: (balance.rows, balance.scenes, _bars(balance)) for name, balance in balances.items()},
        groups=shown,
        num_shown=len(chosen),
        font_size=FONT_SIZE,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, out)
    return len(chosen)


def object_box(item: SceneObject, view: str, size: tuple[int, int], field_of_view: float) -> Box:
    """Where a solid stands in a rendered picture of *size* (width, height) with *field_of_view*, in degrees."""
    radius = RADIUS[item.size]
    # The solids of render.py as rings (height, radius) about the upright; a cube is two rings of four corners.
    rings = {
        "cube": [(0.0, radius), (math.sqrt(2.0) * radius, radius)],
        "cylinder": [(0.0, 0.8 * radius), (1.6 * radius, 0.8 * radius)],
        "sphere": [
            (radius + radius * math.sin(latitude), radius * math.cos(latitude))
            for latitude in map(math.radians, range(-90, 91, 15))
        ],
    }[item.shape]
    num_corners, turn = (4, item.rotation + 45.0) if item.shape == "cube" else (24, 0.0)
    xs, ys = [], []
    for height, ring in rings:
        for corner in range(num_corners):
            angle = math.radians(turn + 360.0 * corner / num_corners)
            point = (item.position[0] + ring * math.cos(angle), item.position[1] + ring * math.sin(angle))
            x, y, _ = project(point, height, view, field_of_view)
            xs.append(size[0] / 2.0 * (1.0 + x))
            ys.append(size[1] / 2.0 - size[0] / 2.0 * y)
    return min(xs), min(ys), max(xs), max(ys)


def _open_splits(folder: Path, split: str | None) -> Mapping[str, datasets.Dataset]:
    check_folder(folder)
    splits = datasets.load_from_disk(folder)
    if split is not None and split not in splits:
        raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(splits)}")
    encoded = datasets.Image(decode=False)
    opened = {}
    for name in splits if split is None else [split]:
        if splits[name].features != FEATURES:
            raise ValueError(f"{folder / name} has other columns than a data set of pairs; see `star-r1 data check`")
        opened[name] = splits[name].cast_column("initial", encoded).cast_column("final", encoded)
    return opened


def _known_field_of_view(recipe: Mapping[str, Any] | None) -> float | None:
    """Horizontal, in degrees, if the pictures were taken by the cameras that `pictures.render.project` knows."""
    return recipe.get("field_of_view") if recipe is not None and recipe.get("renderer") == RENDERER else None


def _count(balance: Balance, row: Mapping[str, Any], where: str) -> Group:
    """Add the row at *where* to *balance*. Raises ValueError when it cannot be read."""
    try:
        for reason in identity_reasons(row):
            raise ValueError(reason)
        scene = read_scene(row)
        balance.add(row, scene, read_transformations(row, scene))
    except ValueError as error:
        raise ValueError(f"{where}: {error}; `star-r1 data check` finds all damage") from error
    balance.rows += 1
    return row["setting"], row["view"]


def _in_turn(lists: Collection[Sequence[T]]) -> Iterator[T]:
    """The first of each list, then the second of each, and so on."""
    for turn in range(max(map(len, lists), default=0)):
        yield from (items[turn] for items in lists if turn < len(items))


def _rank(group: Group) -> tuple[int, int]:
    return SETTINGS.index(group[0]), VIEWS.index(group[1])


def _bars(balance: Balance) -> list[tuple[str, list[tuple[str, int, float]]]]:
    """The charts of a split: titles, and for each value its count and that in percent of the largest."""
    return [
        (title, [(str(value), count, 100.0 * count / max(counts.values())) for value, count in ordered(counts)])
        for title, counts in charts(balance).items()
    ]


def _pair(splits: Mapping[str, datasets.Dataset], place: Place, field_of_view: float | None) -> Pair:
    split, number = place
    row = splits[split][number]
    before = read_scene(row)
    transformations = read_transformations(row, before)
    after = apply(before, transformations)
    changes = net_changes(before, transformations)
    changed = {change.index for change in changes}
    try:
        pictures = [
            _picture("initial", row["initial"], "center", before, changes, field_of_view),
            _picture("final", row["final"], row["view"], after, changes, field_of_view),
        ]
    except ValueError as error:
        raise ValueError(f"split {split}, {row['id']}: {error}; `star-r1 data check` finds all damage") from error
    return Pair(
        id=row["id"],
        split=split,
        pictures=pictures,
        changes=[_in_words(change, before, after) for change in changes],
        overridden=[str(change) for change in transformations if change not in changes],
        objects=[
            (item, "#{:02x}{:02x}{:02x}".format(*COLOR_RGB[item.color]), index in changed)
            for index, item in enumerate(before)
        ],
    )


def _in_words(change: Transformation, before: Scene, after: Scene) -> str:
    """A change with its object's index, for example `1 size: small → large`."""
    index, attribute, value = change
    if attribute != "position":
        return f"{index} {attribute}: {getattr(before[index], attribute)} → {value}"
    sight = {(True, False): ", out of sight", (False, True): ", into sight"}
    return f"{index} position: {value}{sight.get((before[index].in_sight, after[index].in_sight), '')}"


def _picture(
    which: str,
    image: Mapping[str, Any],
    view: str,
    scene: Scene,
    changes: Sequence[Transformation],
    field_of_view: float | None,
) -> Picture:
    """*scene* is what the picture shows. Raises ValueError when the picture is damaged."""
    try:
        picture = read_picture(image)
    except ValueError as error:
        raise ValueError(f"the {which} picture {error}") from error
    marks, labels, indices = list[Box](), list[Label](), list[Label]()
    for index, item in enumerate(scene):
        if field_of_view is None or not item.in_sight:
            continue
        left, top, right, bottom = box = object_box(item, view, picture.size, field_of_view)
        values = [_value(item, change) for change in changes if change.index == index]
        if values:
            marks.append(box)
            labels.append(_label(f"{index} {', '.join(values)}", box, picture.size, labels))
        else:
            base_line = (top + bottom) / 2 + 0.36 * FONT_SIZE * picture.width
            indices.append(Label(str(index), (left + right) / 2, base_line))
    source = f"data:{Image.MIME[str(picture.format)]};base64,{base64.b64encode(image['bytes']).decode()}"
    return Picture(f"{which}, {view} camera", source, *picture.size, marks, labels, indices)


def _value(item: SceneObject, change: Transformation) -> str:
    return change.value if change.attribute == "position" else getattr(item, change.attribute)


def _label(text: str, box: Box, size: tuple[int, int], others: Sequence[Label]) -> Label:
    """Above *box*, or under it where there is no room or another label; within a picture of *size* in any case."""
    left, top, right, bottom = box
    font_size = FONT_SIZE * size[0]
    x = min(max((left + right) / 2, _half_width(text, size)), size[0] - _half_width(text, size))
    above = Label(text, x, max(top - 0.3 * font_size, font_size))
    under = Label(text, x, min(bottom + font_size, size[1] - 0.3 * font_size))
    for label in (above, under) if top > 1.2 * font_size else (under, above):
        if not any(
            abs(label.y - other.y) < font_size
            and abs(x - other.x) < _half_width(text, size) + _half_width(other.text, size)
            for other in others
        ):
            return label
    return above


def _half_width(text: str, size: tuple[int, int]) -> float:
    """About that of a label, in pixels of the picture; the browser chooses the font."""
    return 0.3 * FONT_SIZE * size[0] * len(text)


_ENVIRONMENT = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_ENVIRONMENT.filters["px"] = "{:.1f}".format
_PAGE = _ENVIRONMENT.from_string(
    """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}: picture pairs</title>
<style>
* { box-sizing: border-box; }
body { margin: 0; padding: 24px clamp(12px, 3vw, 40px); background: #f4f5f7; color: #1d2330;
  font: 15px/1.45 system-ui, sans-serif; }
h1 { margin: 0; font-size: 26px; }
h2 { margin: 36px 0 12px; font-size: 19px; scroll-margin-top: 56px; }
h3 { margin: 0 0 8px; font: 600 14px ui-monospace, monospace; overflow-wrap: anywhere; }
.quiet { color: #667085; font-weight: 400; }
.bar-row { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 12px 36px; margin: 10px 0 18px; }
.chart { border-spacing: 0; font-size: 13px; }
.chart caption { text-align: left; font-weight: 600; }
.chart td { padding: 0 8px 0 0; white-space: nowrap; }
.chart td:last-child { text-align: right; padding: 0; }
.bar { display: block; height: 9px; border-radius: 2px; background: #4a7bd0; }
.bar-cell { width: 100px; }
nav { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: 6px 20px; padding: 10px 0;
  background: #f4f5f7; border-bottom: 1px solid #d9dde5; }
nav a { color: #2459b3; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(600px, 100%), 1fr)); gap: 16px; }
.pair { padding: 14px; border: 1px solid #e1e5ec; border-radius: 8px; background: #fff; }
.pictures { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; }
figure { margin: 0; }
figcaption { color: #667085; font-size: 13px; }
.stage { position: relative; }
.stage img { display: block; width: 100%; height: auto; image-rendering: pixelated; border-radius: 4px; }
.stage svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.halo, .mark { fill: none; vector-effect: non-scaling-stroke; }
.halo { stroke: #fff; stroke-width: 4px; stroke-opacity: 0.75; }
.mark { stroke: #e6007a; stroke-width: 2px; }
svg text { font-family: system-ui, sans-serif; text-anchor: middle; paint-order: stroke; stroke-linejoin: round;
  stroke-width: 3px; }
.label { fill: #c4006a; stroke: #fff; font-weight: 700; }
.index { fill: #fff; stroke: #0008; }
.changes { margin: 8px 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: 6px; }
.changes li { padding: 1px 9px; border-radius: 10px; background: #fde6f2; color: #a3005a; font-weight: 600; }
.changes + p { margin: 8px 0; font-size: 14px; }
.objects { margin: 0; padding: 0; list-style: none; display: grid; gap: 1px 16px; font-size: 14px;
  grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); }
.objects b { display: inline-block; min-width: 1.2em; font-weight: 600; }
.swatch { display: inline-block; width: 11px; height: 11px; margin-right: 5px; border: 1px solid #0003;
  border-radius: 3px; }
.changed { color: #a3005a; font-weight: 600; }
.unseen { color: #a0a7b4; }
body:has(#boxes:not(:checked)) .marks, body:has(#numbers:not(:checked)) .index { display: none; }
</style>
</head>
<body>
<header>
<h1>{{ name }}</h1>
{% for split, (num_rows, num_scenes, split_charts) in splits.items() %}
<section class="balance">
<strong>{{ split }}</strong> <span class="quiet">{{ num_rows }} pairs of {{ num_scenes }} scenes</span>
<div class="bar-row">
{% for title, bars in split_charts %}
<table class="chart">
<caption>{{ title }}</caption>
<tbody>
{% for value, count, percent in bars %}
<tr><td>{{ value }}</td><td class="bar-cell"><span class="bar" style="width: {{ "%.1f" % percent }}%"></span></td>\
<td>{{ count }}</td></tr>
{% endfor %}
</tbody>
</table>
{% endfor %}
</div>
</section>
{% endfor %}
</header>
<nav>
<span>{{ num_shown }} pairs shown:</span>
{% for setting, view, _, _ in groups %}
<a href="#{{ setting }}-{{ view }}">{{ setting }}{% if setting == "view" %}, {{ view }}{% endif %}</a>
{% endfor %}
{% if marked %}
<label><input type="checkbox" id="boxes" checked> marks</label>
<label><input type="checkbox" id="numbers" checked> numbers of unchanged objects</label>
{% else %}
<span class="quiet">No marks: where the cameras stood is not known.</span>
{% endif %}
</nav>
<main>
{% for setting, view, total, pairs in groups %}
<h2 id="{{ setting }}-{{ view }}">{{ setting }}, {{ view }} camera
<span class="quiet">{{ pairs|length }} of {{ total }}</span></h2>
<div class="pairs">
{% for pair in pairs %}
<article class="pair">
<h3>{{ pair.id }} <span class="quiet">{{ pair.split }}</span></h3>
<div class="pictures">
{% for picture in pair.pictures %}
<figure>
<div class="stage">
<img src="{{ picture.source }}" width="{{ picture.width }}" height="{{ picture.height }}" alt="{{ picture.title }}">
{% if marked %}
<svg viewBox="0 0 {{ picture.width }} {{ picture.height }}">
{% for left, top, right, bottom in picture.marks %}
{% for class in ("halo", "mark") %}
<rect class="{{ class }} marks" x="{{ left|px }}" y="{{ top|px }}" width="{{ (right - left)|px }}" \
height="{{ (bottom - top)|px }}"/>
{% endfor %}
{% endfor %}
{% for class, labels in (("index", picture.indices), ("label marks", picture.labels)) %}
{% for label in labels %}
<text class="{{ class }}" x="{{ label.x|px }}" y="{{ label.y|px }}" font-size="{{ font_size * picture.width }}">\
{{ label.text }}</text>
{% endfor %}
{% endfor %}
</svg>
{% endif %}
</div>
<figcaption>{{ picture.title }}</figcaption>
</figure>
{% endfor %}
</div>
<ul class="changes">
{% for change in pair.changes %}
<li>{{ change }}</li>
{% else %}
<li>nothing that can be seen</li>
{% endfor %}
</ul>
{% if pair.overridden %}
<p class="quiet">also made, and not to be seen: {{ pair.overridden|join(", ") }}</p>
{% endif %}
<ol class="objects">
{% for item, color, changed in pair.objects %}
<li class="{{ "changed " if changed }}{{ "unseen" if not item.in_sight }}"><b>{{ loop.index0 }}</b>\
<span class="swatch" style="background: {{ color }}"></span>{{ item }}{{ ", out of sight" if not item.in_sight }}</li>
{% endfor %}
</ol>
</article>
{% endfor %}
</div>
{% endfor %}
</main>
</body>
</html>
"""
)
