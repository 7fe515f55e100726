"""Draw the held-out views of a committed table's runs, a rule a line: ``python docs/figures/views.py NAME``.

Of each of two views a line has what the rule's field shows, its error (the mean of the three colours; white is none,
black a quarter of the range or more), and its depth, light where it is near. For a coarse and a fine net the view by
the mean of both (NeRF-Dual) and its error follow. The photographs are in a line above those of their scene.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from schemes import FOLDER, NAMES

Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

MARGIN, GAP, INK, SIZE = 120, 4, (31, 35, 40), 14


def sheets(name: str) -> dict[str, Pixels]:
    """Return the pictures of each row's first seed by label, in the table's order.

    Their shape is ``(views, pictures, height, width, 3)``; the first picture of a view is the photograph.
    """
    table = json.loads((FOLDER.parents[1] / "results" / f"{name}.json").read_text())
    found = {one["label"]: _pixels(one) for one in table["records"] if one.get("views")}
    rows = dict.fromkeys(entry["row"] for entries in table["tables"].values() for entry in entries)
    return {row: found[row] for row in rows if row in found}


def _pixels(record: dict[str, Any]) -> Pixels:
    sheet = record["views"]
    pictures = 4 if record["dual_psnr"] is None else 6  # of a view, side by side
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet["png"]))).convert("RGB"))
    views = len(sheet["names"])
    return pixels.reshape(views, sheet["height"] // views, pictures, sheet["width"] // pictures, 3).swapaxes(1, 2)


def lines(shown: dict[str, Pixels]) -> Iterator[tuple[str, Pixels]]:
    """Return the name and the pictures of each line, ``(pictures, height, width, 3)``."""
    photographs = np.empty(0)
    for label, pixels in shown.items():
        if not np.array_equal(pixels[:, 0], photographs):
            photographs = pixels[:, 0]
            white = np.full_like(pixels[:, 2:], 255)
            yield "photograph", np.concatenate([photographs[:, None], white], axis=1).reshape(-1, *pixels.shape[2:])
        yield NAMES.get(label, label), pixels[:, 1:].reshape(-1, *pixels.shape[2:])


def grid(shown: dict[str, Pixels]) -> Image.Image:
    """Put the lines one below the other on white, their names to the left."""
    drawn = list(lines(shown))
    width = max(len(pictures) * (pictures.shape[2] + GAP) for _, pictures in drawn)
    sheet = Image.new("RGB", (MARGIN + width, sum(pictures.shape[1] + GAP for _, pictures in drawn)), "white")
    pen, font, down = ImageDraw.Draw(sheet), ImageFont.load_default(SIZE), 0
    for name, pictures in drawn:
        height, width = pictures.shape[1:3]
        pen.text((0, down + height / 2), name, INK, font, anchor="lm")
        for number, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (MARGIN + number * (width + GAP), down))
        down += height + GAP
    return sheet


if __name__ == "__main__":
    grid(sheets(sys.argv[1])).save(FOLDER / f"{sys.argv[1]}-views.png", optimize=True)
