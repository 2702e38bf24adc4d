"""Makes `contact_sheet.png`, which is for looking at: every material, size and shape from the three views.

    python -m tests.golden.contact_sheet

Each cell is cut at its true scale from a picture of 160x120 pixels at 16 samples a pixel. Rows: rubber, metal, glass,
each large, medium, small. Columns: cube, sphere, cylinder, each from the centre, the left and the right.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from tasks.tvr.language.scene import MATERIALS, SHAPES, SIZES, VIEWS, SceneObject
from tasks.tvr.pictures.render import render

SHEET = Path(__file__).with_name("contact_sheet.png")
ROWS = [(material, size) for material in MATERIALS for size in reversed(SIZES)]
COLUMNS = [(shape, view) for shape in SHAPES for view in VIEWS]
TOP, LEFT, HEIGHT, WIDTH = 26, 52, 52, 56  # of the cell in the picture, pixels


def cell(material: str, size: str, shape: str, view: str) -> np.ndarray:
    """`[52, 56, 3]` uint8."""
    item = SceneObject(color="red", shape=shape, size=size, material=material, rotation=20.0)
    return render((item,), view, (160, 120), 16, seed=0)[TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH]


def main() -> None:
    rows = [np.concatenate([cell(*row, *column) for column in COLUMNS], axis=1) for row in ROWS]
    Image.fromarray(np.concatenate(rows)).save(SHEET, optimize=True)


if __name__ == "__main__":
    main()
