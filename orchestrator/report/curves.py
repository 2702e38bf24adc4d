"""What a run's numbers did over its steps, as curves of characters.

Every curve is a title and HEIGHT lines of at most *width* columns. On a terminal it has colours; without, its markers
differ.
"""

from collections.abc import Mapping, Sequence

import plotext
from rich.text import Text

WIDTH = 80
SHARE_COLORS = ("blue", "green", "magenta", "cyan")
HEIGHT = 15  # 11 rows between the axes: one for each tenth of a share

Row = Mapping[str, float]
"""A row of `metrics.jsonl`."""
Points = Sequence[tuple[float, float]]
"""Steps, or versions, and their values. Step n makes version n."""


def reward_curve(rows: Sequence[Row], width: int = WIDTH) -> Text:
    """Mean reward of the sampled answers by step."""
    return _line(rows, "reward", "Mean reward of sampled answers", width)


def loss_curve(rows: Sequence[Row], width: int = WIDTH) -> Text:
    """Loss by step."""
    return _line(rows, "loss", "Loss", width)


def shares_curve(
    rows: Sequence[Row], shares: Sequence[str], held_out: Points, headline: str | None, width: int = WIDTH
) -> Text:
    """*shares* of sampled answers, columns of *rows*, by step, and *held_out*, the metric *headline*, by version."""
    drawn: list[tuple[str, str, str, Points]] = []
    steps = 1
    for key, color in zip(reversed(shares), SHARE_COLORS, strict=False):
        points, steps = _averaged(rows, key, most=width // 2)
        drawn.append((key, key[0].lower(), color, points))
    if headline is not None:
        drawn.append((f"held-out {headline}", headline[0].upper(), "red", held_out))
    _begin("share", [point for *_, points in drawn for point in points], width)
    for _, marker, color, points in drawn:
        if points:
            plotext.scatter(*zip(*points, strict=True), marker=marker, color=color)
    plotext.ylim(0, 1)
    names = [f"{marker} {name}" for name, marker, _, points in drawn if points]
    return _built(f"Shares: {', '.join(names)}", steps)


def _line(rows: Sequence[Row], key: str, title: str, width: int) -> Text:
    points, steps = _averaged(rows, key, most=width)
    _begin(key, points, width)
    plotext.plot(*zip(*points, strict=True), marker="braille", color="blue")
    return _built(title, steps)


def _averaged(rows: Sequence[Row], key: str, most: int) -> tuple[Points, int]:
    """At most *most* points, each the mean of so many steps (the last perhaps of fewer), and how many steps these are.

    Rows from before there was a *key*, in a run that goes on since then, are passed over.
    """
    values = [(row["step"], row[key]) for row in rows if key in row]
    steps = max(1, -(-len(values) // most))
    blocks = [values[start : start + steps] for start in range(0, len(values), steps)]
    return [(sum(x for x, _ in block) / len(block), sum(y for _, y in block) / len(block)) for block in blocks], steps


def _begin(y_label: str, points: Points, width: int) -> None:
    """Clear plotext's figure, of which a process has one, for *points*: their steps are marked by whole numbers."""
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.limit_size(False, False)  # the terminal may be a low one
    plotext.plot_size(width, HEIGHT)
    plotext.xlabel("step")
    plotext.ylabel(y_label)
    plotext.yfrequency(6)
    steps = [step for step, _ in points]
    first, last = min(steps, default=0), max(steps, default=0)
    ticks = sorted({round(first + (last - first) * quarter / 4) for quarter in range(5)})
    plotext.xticks(ticks, [str(tick) for tick in ticks])


def _built(title: str, steps_a_point: int) -> Text:
    """The title is ours: plotext leaves out one that is too long."""
    mean = f" ({steps_a_point} steps a point)" if steps_a_point > 1 else ""
    return Text(f"{title}{mean}\n") + Text.from_ansi(plotext.build())
