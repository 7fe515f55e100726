"""Draw the held-out views of a committed table's runs, a rule a line: ``python docs/figures/views.py NAME``.

Of each of two views a line has what the rule's field shows, its error (the mean of the three colours; white is none,
black a quarter of the range or more), and its depth, light where it is near. The photographs are in the first line.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from schemes import FOLDER, NAMES

Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

PICTURES = 4
"""The pictures of a view in a record, side by side: the photograph, and the three of a field."""
MARGIN, GAP, INK, SIZE = 120, 4, (31, 35, 40), 14


def sheets(name: str) -> dict[str, Pixels]:
    """Return the pictures of each row's first seed by label, in the table's order: ``(views, height, 4, width, 3)``."""
    table = json.loads((FOLDER.parents[1] / "results" / f"{name}.json").read_text())
    found = {one["label"]: _pixels(one["views"]) for one in table["records"] if one.get("views")}
    rows = dict.fromkeys(entry["row"] for entries in table["tables"].values() for entry in entries)
    return {row: found[row] for row in rows if row in found}


def _pixels(sheet: dict[str, Any]) -> Pixels:
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet["png"]))).convert("RGB"))
    views = len(sheet["names"])
    return pixels.reshape(views, sheet["height"] // views, PICTURES, sheet["width"] // PICTURES, 3)


def grid(shown: dict[str, Pixels]) -> Image.Image:
    """Put the lines one below the other on white, their names to the left."""
    first = next(iter(shown.values()))
    views, height, _, width, _ = first.shape
    across, down = width + GAP, height + GAP
    sheet = Image.new("RGB", (MARGIN + views * (PICTURES - 1) * across, (1 + len(shown)) * down), "white")
    drawn, font = ImageDraw.Draw(sheet), ImageFont.load_default(SIZE)
    for line, (label, pixels) in enumerate({"photograph": first, **shown}.items()):
        drawn.text((0, line * down + height / 2), NAMES.get(label, label), INK, font, anchor="lm")
        for view in range(views):
            for column, part in enumerate([0] if line == 0 else range(1, PICTURES)):
                place = MARGIN + (view * (PICTURES - 1) + column) * across, line * down
                sheet.paste(Image.fromarray(pixels[view, :, part]), place)
    return sheet


if __name__ == "__main__":
    grid(sheets(sys.argv[1])).save(FOLDER / f"{sys.argv[1]}-views.png", optimize=True)
