"""Plain text tables."""

from __future__ import annotations

from collections.abc import Sequence


def tabulate(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table with a rule under its header; none for an empty header."""
    if not header:
        return []
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    cells = [header, ["-" * width for width in widths], *rows]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
