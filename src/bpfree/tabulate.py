"""Plain text tables, and how they name modules."""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Iterable, Sequence

from torch import nn

_NUMBER = re.compile(r"(\d+)")
_FEWEST = 3
"""The number of rows that must be alike to become one."""
_LONGEST = 32
"""The largest number of different rows in a repeated block."""


def tabulate(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of a table with a rule under its header; none for an empty header."""
    if not header:
        return []
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    cells = [header, ["-" * width for width in widths], *rows]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def fold(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return rows with repeated blocks folded: ``blocks.0.act``, ``blocks.1.act``, ... become ``blocks.0-23.act``.

    Rows are alike if they differ in numbers alone, and each of these is the same in all or grows by one from block to
    block, that in the first cell included. A block may have several rows.
    """
    numbered = [_split(row) for row in rows]
    folded: list[list[str]] = []
    start = 0
    while start < len(rows):
        period, repeats = _longest_repeat(numbered, start)
        last = start + period * (repeats - 1)
        folded += [_joined(numbered[start + i], numbered[last + i]) for i in range(period)]
        start += period * repeats
    return folded


def fold_names(names: Iterable[str]) -> list[str]:
    """Return names of modules, those of repeated blocks as ranges: ``["stem", "blocks.0-23.act"]``."""
    return [row[0] for row in fold([[name] for name in names])]


_Split = list[list[str]]
"""The cells of one row, each cut into text and digits in turns."""


def _split(row: Sequence[str]) -> _Split:
    return [_NUMBER.split(cell) for cell in row]


def _longest_repeat(rows: Sequence[_Split], start: int) -> tuple[int, int]:
    """Return the size of the block at ``start`` and its number of repetitions, such that they cover most rows."""
    best = (1, 1)
    for period in range(1, min(_LONGEST, (len(rows) - start) // _FEWEST) + 1):
        repeats = 1
        while _is_next(rows, start, period, repeats):
            repeats += 1
        if repeats >= _FEWEST and period * repeats > best[0] * best[1]:
            best = (period, repeats)
    return best


def _is_next(rows: Sequence[_Split], start: int, period: int, repeats: int) -> bool:
    """Return whether the block at ``start`` comes once more after ``repeats`` times."""
    first, second, here = start, start + period, start + period * repeats
    if here + period > len(rows):
        return False
    return all(_is_alike(rows[first + i], rows[second + i], rows[here + i], repeats) for i in range(period))


def _is_alike(first: _Split, second: _Split, row: _Split, steps: int) -> bool:
    """Return whether ``row`` is ``first``, with ``steps`` added to the numbers that are one larger in ``second``."""
    if [len(cell) for cell in first] != [len(cell) for cell in row]:
        return False
    if all(a == b for a, b in zip(first[0], second[0], strict=False)):
        return False
    cells = zip(first, second, row, strict=True)
    return all(_grown(*parts, steps) for cell in cells for parts in zip(*cell, strict=False))


def _grown(first: str, second: str, this: str, steps: int) -> bool:
    if first == second:
        return this == first
    return first.isdigit() and second == str(int(first) + 1) and this == str(int(first) + steps)


def _joined(first: _Split, last: _Split) -> list[str]:
    return [
        "".join(a if a == b else f"{a}-{b}" for a, b in zip(one, other, strict=True))
        for one, other in zip(first, last, strict=True)
    ]


def name_some(names: Collection[str]) -> str:
    """Return a few of these names, for a message."""
    first = sorted(names)[:3]
    return ", ".join(map(repr, first)) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def others(model: nn.Module, served: Container[str]) -> list[str]:
    """Return the modules with own parameters that are not in ``served``, as ``"norm (BatchNorm1d)"``."""
    return [
        f"{name or '(model)'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if name not in served and next(module.parameters(recurse=False), None) is not None
    ]
