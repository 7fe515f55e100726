"""The rows of all files of results, looked up by what they are of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpfree.lab.disk.files import read_json
from common.results import Row

FILES = ("step", "memory", "scaling", "pipeline")
TIME_RATIO, THROUGHPUT_RATIO = "time", "throughput"


@dataclass(frozen=True)
class Measured:
    """What the files in one folder hold.

    Attributes:
        rows: The rows of each file; of one that is not there, none.
        runs: The runs of each file.
    """

    rows: dict[str, list[Row]]
    runs: dict[str, list[dict[str, Any]]]

    @classmethod
    def of(cls, folder: Path) -> Measured:
        """Read the folder."""
        files = {name: folder / f"{name}.json" for name in FILES}
        found = {name: read_json(path) if path.exists() else {"rows": [], "runs": []} for name, path in files.items()}
        return cls(*({name: one[part] for name, one in found.items()} for part in ("rows", "runs")))

    def find(self, file: str, **wanted: Any) -> list[Row]:
        """The rows whose entries are the wanted ones; a wanted function is asked."""
        return [row for row in self.rows[file] if all(_agrees(row.get(key), of) for key, of in wanted.items())]

    def ratio(self, file: str, kind: str = TIME_RATIO, **wanted: Any) -> dict[str, Any] | None:
        """Median and quartiles of the first such row that has any; None where there is none."""
        return next((row[kind] for row in self.find(file, **wanted) if row.get(kind)), None)

    def depths(self) -> list[Row]:
        """The counts of memory over the depth, of the one width and batch that most of them are of."""
        rows = self.find("memory", reference=None)
        shapes = [(row["width"], row["batch"]) for row in rows]
        most = max(set(shapes), key=shapes.count, default=None)
        return [row for row, shape in zip(rows, shapes, strict=True) if shape == most]

    def growth(self, subject: str, part: str) -> tuple[int, int, float] | None:
        """The least and the greatest depth where a subject's memory was counted, and how it grew between them."""
        found = {row["depth"]: row[part] for row in self.depths() if row["subject"] == subject}
        if len(found) < 2:
            return None
        first, last = min(found), max(found)
        return first, last, found[last] / found[first]


def _agrees(value: Any, wanted: Any) -> bool:
    return bool(wanted(value)) if isinstance(wanted, Callable) else value == wanted
