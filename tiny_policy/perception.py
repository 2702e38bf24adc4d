"""How well a vision tower sees, in numbers and in pictures of what it got wrong; and the curve of a pretraining."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from tasks.tvr.language.scene import ATTRIBUTES, VIEWS
from tiny_policy.see import Pictures, count_pixels, name_objects

MISTAKES_SHOWN = 24
COLUMNS = 6
CAPTION_PX = 12
NO_SHARES = ("phase", "step", "minutes", "loss", "held_out_loss", "objects")


def count_right(pictures: Pictures, said: dict[str, torch.Tensor], token_px: int) -> dict[str, dict[str, float]]:
    """Shares of objects whose colour, shape, size, material and number (*index*) are right.

    Of *all* visible ones, and of those of each view, number of objects and size; *objects* counts them.
    """
    right = _right(pictures, said, token_px)
    there = count_pixels(pictures, token_px).sum(2) > 0
    sizes = pictures.cells[..., list(ATTRIBUTES).index("size")]
    groups = {"all": there}
    groups |= {f"view {view}": there & (pictures.views == place)[:, None] for place, view in enumerate(VIEWS)}
    for count in sorted(set(pictures.num_objects.tolist())):
        groups[f"{count} objects"] = there & (pictures.num_objects == count)[:, None]
    groups |= {size: there & (sizes == place) for place, size in enumerate(ATTRIBUTES["size"])}
    return {
        group: {
            **{name: round(float(hits[chosen].float().mean()), 4) for name, hits in right.items()},
            "objects": float(chosen.sum()),
        }
        for group, chosen in groups.items()
        if chosen.any()
    }


def draw_mistakes(path: Path, pictures: Pictures, said: dict[str, torch.Tensor], token_px: int) -> None:
    """A sheet of pictures in which something was misnamed, each with the first thing that was: `1: cube>cylinder`."""
    names = name_objects(said, pictures, token_px)
    right = _right(pictures, said, token_px)
    height, width = pictures.pixels.shape[-2:]
    there = count_pixels(pictures, token_px).sum(2) > 0
    cells: list[Image.Image] = []
    for row in range(len(pictures)):
        wrong = [
            (name, i) for name, hits in right.items() for i in torch.nonzero(there[row] & ~hits[row])[:, 0].tolist()
        ]
        if wrong and len(cells) < MISTAKES_SHOWN:
            name, index = wrong[0]
            guess = int(names[name][row, index])
            if name == "index":
                text = f"{VIEWS[pictures.views[row]]} index {index}>{guess}"
            else:
                truth = int(pictures.cells[row, index, list(ATTRIBUTES).index(name)])
                text = f"{VIEWS[pictures.views[row]]} {index}: {ATTRIBUTES[name][truth]}>{ATTRIBUTES[name][guess]}"
            cell = Image.new("RGB", (width, height + CAPTION_PX), "white")
            cell.paste(Image.fromarray(pictures.pixels[row].permute(1, 2, 0).numpy()), (0, CAPTION_PX))
            ImageDraw.Draw(cell).text((2, 0), text, fill="black")
            cells.append(cell)
    rows = max(1, -(-len(cells) // COLUMNS))
    sheet = Image.new("RGB", (COLUMNS * width, rows * (height + CAPTION_PX)), "white")
    for place, cell in enumerate(cells):
        sheet.paste(cell, (place % COLUMNS * width, place // COLUMNS * (height + CAPTION_PX)))
    sheet.save(path, quality=90)


def draw_curve(curve: Path, path: Path) -> None:
    """What `teach` wrote to *curve*, one plot a phase."""
    from matplotlib.figure import Figure  # here, so that learner ranks do not load it

    rows: dict[str, list[Mapping[str, Any]]] = {}
    for line in curve.read_text().splitlines():
        row = json.loads(line)
        rows.setdefault(row["phase"], []).append(row)
    figure = Figure(figsize=(4.5 * len(rows), 3.2), layout="constrained")
    plots = figure.subplots(1, len(rows), squeeze=False)[0]
    for plot, (phase, points) in zip(plots, rows.items(), strict=True):
        for name in (name for name in points[0] if name not in NO_SHARES):
            plot.plot([point["step"] for point in points], [point[name] for point in points], label=name)
        plot.set(title=phase, xlabel="step", ylim=(0, 1.02))
        plot.grid(alpha=0.3)
        plot.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=90)


def _right(pictures: Pictures, said: dict[str, torch.Tensor], token_px: int) -> dict[str, torch.Tensor]:
    """`[B, O]` bool of each name; what is not there is not right either."""
    names = name_objects(said, pictures, token_px)
    numbers = torch.arange(pictures.cells.shape[1])
    right = {name: names[name] == pictures.cells[..., column] for column, name in enumerate(ATTRIBUTES)}
    return {**right, "index": names["index"] == numbers}
