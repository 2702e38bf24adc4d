"""The charts of a study's page, as SVG text to stand in HTML. Imported only when a page is made: it brings matplotlib.

Colours are Okabe and Ito's, which colour-blind people tell apart, the yellow darkened for a white page; every arm also
has a dash and a marker of its own.
"""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from orchestrator.study.results import ArmResult, CellResult, StudyResult

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#8a7a00", "#000000", "#7f7f7f")
MARKERS = "osD^vPX*"
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["system-ui", "DejaVu Sans", "sans-serif"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#667085",
    "axes.labelcolor": "#344054",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "xtick.color": "#475467",
    "ytick.color": "#475467",
    "axes.grid": True,
    "grid.color": "#e4e7ec",
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
GRID_POINTS = 61
BLOCKS = 12


class Curve(NamedTuple):
    """*y* over *x* of the points of a cell's `validation` or `training`, where there is a *y*.

    Steps differ by which prompts they drew: of `training`, blocks of steps are averaged to about BLOCKS points.
    """

    kind: str
    x: str
    y: str

    def points(self, cell: CellResult) -> list[tuple[float, float]]:
        pairs = [(getattr(point, self.x), getattr(point, self.y)) for point in getattr(cell, self.kind)]
        known = [(x, y) for x, y in pairs if y is not None]
        size = max(1, len(known) // BLOCKS) if self.kind == "training" else 1
        blocks = [known[start : start + size] for start in range(0, len(known), size)]
        return [(sum(x for x, _ in block) / len(block), sum(y for _, y in block) / len(block)) for block in blocks]


def validation_chart(study: StudyResult) -> str:
    """TAcc on the validation pairs over samples and over seconds; the mean of the seeds, from lowest to highest."""
    with _figure("validation", 11.4, 4.2) as (figure, svg):
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, x_name in ((left, "samples"), (right, "seconds")):
            _lines(axes, study, Curve("validation", x_name, "tacc"))
            axes.set_xlabel("samples learned from" if x_name == "samples" else "seconds of training")
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
        left.set_ylabel("TAcc, %")
        _legend(figure, left)
        return svg()


def tacc_chart(study: StudyResult) -> str:
    """TAcc on the test pairs: mean, standard error, and a dot for each seed."""
    arms = [arm for arm in study.arms if arm.cells]
    with _figure("test", 11.4, 0.6 + 0.42 * (len(arms) + 1)) as (figure, svg):
        axes = figure.subplots()
        axes.grid(axis="y", visible=False)
        if study.base is not None:
            axes.barh(-1, 100 * (study.base.numbers["TAcc"] or 0.0), height=0.6, color="#d0d5dd")
        for place, arm in enumerate(arms):
            value = arm.summary["TAcc"]
            color, _, _ = _look(study, arm)
            axes.barh(place, 100 * value.mean, height=0.6, color=color, alpha=0.55)
            if value.error is not None:
                axes.errorbar(100 * value.mean, place, xerr=100 * value.error, color="#1d2330", capsize=4, lw=1.3)
            dots = [100 * (cell.numbers["TAcc"] or 0.0) for cell in arm.cells]
            axes.plot(dots, [place] * len(dots), "o", ms=4, mfc="white", mec="#1d2330", ls="none")
        axes.set_yticks(range(-1, len(arms)), ["base policy", *(arm.arm.name for arm in arms)])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("TAcc on the test pairs, %")
        return svg()


def behaviour_chart(study: StudyResult) -> str:
    """How replies come about, over the samples: greedy ones to the validation pairs, and the sampled ones."""
    panels = (("careful", "careful replies, %"), ("triplets", "triplets a reply"), ("length", "reply length, tokens"))
    with _figure("behaviour", 11.4, 6.6) as (figure, svg):
        grid = figure.subplots(2, 3, sharex=True)
        for column, (name, title) in enumerate(panels):
            for row, curve in enumerate(("validation", "training")):
                axes = grid[row][column]
                _lines(axes, study, Curve(curve, "samples", name))
                axes.set_title(title)
                if name == "careful":
                    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
                    axes.set_ylim(-0.04, 1.04)
        grid[0][0].set_ylabel("greedy, validation pairs")
        grid[1][0].set_ylabel("what was learned from")
        for axes in grid[1]:
            axes.set_xlabel("samples learned from")
        _legend(figure, grid[0][0])
        return svg()


def _lines(axes: Axes, study: StudyResult, curve: Curve) -> None:
    """One line an arm: the mean of its seeds, where all have points, and a band from the lowest to the highest."""
    for arm in study.arms:
        seeds = [points for cell in arm.cells if len(points := curve.points(cell)) > 1]
        if not seeds:
            continue
        color, dash, marker = _look(study, arm)
        start, end = max(points[0][0] for points in seeds), min(points[-1][0] for points in seeds)
        at = np.linspace(start, end, GRID_POINTS)
        values = np.array([np.interp(at, [x for x, _ in points], [y for _, y in points]) for points in seeds])
        look = {"color": color, "ls": dash, "marker": marker, "markevery": GRID_POINTS // 6, "ms": 4.5, "lw": 1.7}
        axes.plot(at, values.mean(0), label=arm.arm.name, **look)
        axes.fill_between(at, values.min(0), values.max(0), color=color, alpha=0.13, lw=0)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, handlelength=3.2)


def _look(study: StudyResult, arm: ArmResult) -> tuple[str, Any, str]:
    """Colour, dash and marker."""
    place = study.arms.index(arm)
    return COLORS[place % len(COLORS)], DASHES[place % len(DASHES)], MARKERS[place % len(MARKERS)]


@contextmanager
def _figure(name: str, width: float, height: float) -> Iterator[tuple[Figure, Callable[[], str]]]:
    """A figure of so many inches, and what gives its SVG. Several stand in one page: *name* begins each id in it."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, lambda: _to_svg(figure, name)


def _to_svg(figure: Figure, name: str) -> str:
    """As an element of a page, which gives its size: without prolog, metadata and name spaces."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', text, count=1)
