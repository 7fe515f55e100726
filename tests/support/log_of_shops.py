"""A log of a few hundred rows in which a click depends on two columns together."""

from __future__ import annotations

import random
from pathlib import Path

SCHEMA = """\
label: clicked
numeric: [price]
categorical: [color, shop]
identifiers: [id]
min_count: 2
"""


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows by column: every second shop sells red, green and blue things, the others the rest."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        color, shop = draw.choice("rgbxyz"), draw.randrange(6)
        likely = 0.8 if (color in "rgb") == (shop % 2 == 0) else 0.1
        found.append(
            {
                "id": f"row{number}",
                "clicked": str(int(draw.random() < likely)),
                "price": draw.choice(["", f"{draw.expovariate(0.05):.2f}"]),
                "color": color,
                "shop": f"shop{shop}",
            }
        )
    return found


def written(path: Path, found: list[dict[str, str]], leave_out: str = "") -> Path:
    """Write rows as CSV, without one column."""
    names = [name for name in found[0] if name != leave_out]
    lines = [",".join(names), *(",".join(row[name] for name in names) for row in found)]
    path.write_text("\n".join(lines) + "\n")
    return path


def folder(place: Path, count: int = 600) -> Path:
    """Make a folder with a log, and beside it its schema, ``schema.yaml``."""
    (place / "log").mkdir(parents=True)
    written(place / "log" / "log.csv", rows(count))
    (place / "schema.yaml").write_text(SCHEMA)
    return place
