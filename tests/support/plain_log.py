"""What a log becomes, row by row in plain Python, and small logs that are made up."""

from __future__ import annotations

import csv
import io
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, str]
SCHEMA: dict[str, Any] = {
    "label": "click",
    "numeric": ["age", "price"],
    "categorical": ["site", "user"],
    "min_count": 2,
    "files": {"train": "train.csv", "validation": "valid.csv", "test": "test.csv"},
}


def made_up(n: int, seed: int, words: Sequence[str] = ()) -> list[Row]:
    """Rows with missing values, rare ones, numbers of all sizes, and names that look like numbers."""
    draw = random.Random(seed)
    sites = ["a.com", "b.com", "007", "8e5", "é", "", *words]

    def number() -> str:
        return draw.choice(["", "0", "1", "2", "3", "4", "5", "-2", str(draw.randrange(10**6)), f"{draw.random():.3f}"])

    return [
        {
            "click": str(draw.randrange(2)),
            "age": number(),
            "price": number(),
            "site": draw.choice(sites),
            "user": f"u{int(draw.expovariate(0.1))}",
        }
        for _ in range(n)
    ]


def as_text(rows: Sequence[Row], separator: str = ",", *, header: bool = True) -> str:
    """The rows as a text file."""
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=separator, lineterminator="\n")
    if header:
        writer.writerow(list(rows[0]))
    writer.writerows([list(row.values()) for row in rows])
    return stream.getvalue()


def write(folder: Path, parts: Mapping[str, Sequence[Row]]) -> Path:
    """A folder with a file for each part."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        (folder / f"{name}.csv").write_text(as_text(rows), encoding="utf-8")
    return folder


def bin_of(text: str) -> int | None:
    """The bin of a number, as torchfm 0.7.0 has it; fractions are rounded down below 2."""
    if not text:
        return None
    value = float(text)
    return int(math.log(value) ** 2) if value > 2 else math.floor(value) - 2


class PlainIds:
    """The identifiers of a column: 0 for unseen values, 1 for missing ones, then by count and value."""

    def __init__(self, values: Sequence[Any], min_count: int) -> None:
        counts = Counter(value for value in values if value not in (None, ""))
        kept = sorted((value for value, n in counts.items() if n >= min_count), key=lambda v: (-counts[v], order(v)))
        self.numbers = {value: number for number, value in enumerate(kept, start=2)}

    def of(self, value: Any) -> int:
        return 1 if value in (None, "") else self.numbers.get(value, 0)


def order(value: Any) -> Any:
    """What values with the same count are sorted by."""
    return value.encode() if isinstance(value, str) else value


def ids(
    train: Sequence[Row], rows: Sequence[Row], numeric: Sequence[str], categorical: Sequence[str], min_count: int
) -> list[list[int]]:
    """The identifiers of rows, by vocabularies of the training rows."""
    found = []
    for name in (*numeric, *categorical):
        read = bin_of if name in numeric else str
        vocabulary = PlainIds([read(row[name]) for row in train], min_count)
        found.append([vocabulary.of(read(row[name])) for row in rows])
    return [list(row) for row in zip(*found, strict=True)]
