"""A made-up log of clicks that is shaped as Criteo's: 13 numbers and 26 names a row, with planted interactions.

The logit of a click is a sum of a second-order and a third-order interaction: products of signs, one for each value of
a field. The signs of a field sum to about 0 over the rows, so that the third-order one is in no two of its fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

SIZES = (1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992, 5461306, 10, 5652,
         2173, 4, 7046547, 18, 15, 286181, 105, 142572)  # fmt: skip
"""The number of different values of C1 to C26 in Criteo's 46 million rows."""
MISSING = (0.45, 0, 0.2, 0.2, 0.02, 0.25, 0.04, 0, 0.04, 0.45, 0.04, 0.78, 0.2,
           0, 0, 0.03, 0.03, 0, 0, 0, 0, 0, 0, 0, 0.03, 0, 0, 0, 0.03, 0, 0, 0.45, 0.45, 0.03, 0.82, 0, 0.03, 0,
           0.45)  # fmt: skip
"""The share of missing values of I1 to I13 and C1 to C26."""
SECOND, THIRD = ("C14", "C23"), ("C6", "C17", "C25")
"""The fields of the two interactions; they are never missing."""
_BIAS, _OF_SECOND, _OF_THIRD = -1.3, 0.8, 1.2
_ROWS = 100_000  # made at once


def write_log(path: Path, rows: int, seed: int = 0) -> None:
    """Write so many rows, tab-separated and without names, 240 bytes each."""
    with path.open("wb") as stream:
        for frame in frames(rows, seed):
            frame.write_csv(stream, separator="\t", include_header=False)


def frames(rows: int, seed: int) -> Iterator[pl.DataFrame]:
    """Yield the rows, some at a time: label, I1 to I13, C1 to C26."""
    draw = np.random.default_rng(seed)
    for first in range(0, rows, _ROWS):
        yield _frame(draw, min(_ROWS, rows - first))


def _frame(draw: np.random.Generator, rows: int) -> pl.DataFrame:
    columns: dict[str, NDArray[np.generic]] = {"label": np.empty(0)}
    ranks = {f"C{number}": _ranks(draw, rows, size) for number, size in enumerate(SIZES, start=1)}
    for number in range(13):
        columns[f"I{number + 1}"] = draw.lognormal(1 + 0.4 * number, 2, rows).astype(np.int64)
    columns |= {name: _names(name, rank) for name, rank in ranks.items()}
    logit = _BIAS + _OF_SECOND * _interaction(ranks, SECOND) + _OF_THIRD * _interaction(ranks, THIRD)
    columns["label"] = (draw.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.uint8)
    frame = pl.DataFrame(columns)
    masks = {name: pl.Series(draw.random(rows) < share) for name, share in zip(frame.columns[1:], MISSING, strict=True)}
    return frame.with_columns([frame[name].set(mask, None) for name, mask in masks.items() if mask.any()])


def _names(field: str, ranks: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Return the names of values: eight digits, as Criteo's have eight letters.

    A few values of a large column share theirs.
    """
    return (10**7 + _mixed(ranks * np.uint64(64) + np.uint64(int(field[1:]) - 1)) % np.uint64(9 * 10**7)).astype(
        np.uint32
    )


def planted(frame: pl.DataFrame, *interactions: tuple[str, ...]) -> NDArray[np.float64]:
    """Return the part of the rows' logits that these interactions, of ``SECOND`` and ``THIRD``, make."""
    found = np.full(len(frame), _BIAS)
    for fields in interactions:
        parts = [_signs_of(frame[field], field) for field in fields]
        found += {SECOND: _OF_SECOND, THIRD: _OF_THIRD}[fields] * np.prod(parts, axis=0)
    return found


def _signs_of(values: pl.Series, field: str) -> NDArray[np.float64]:
    known = signs(field)
    names = _names(field, np.arange(len(known), dtype=np.uint64))
    order = np.argsort(names)
    return known[order[np.searchsorted(names[order], values.to_numpy())]]


def _ranks(draw: np.random.Generator, rows: int, size: int) -> NDArray[np.uint64]:
    """Draw values by rank, as often as Zipf's law has it."""
    return np.minimum((size + 1) ** draw.random(rows) - 1, size - 1).astype(np.uint64)


def _interaction(ranks: dict[str, NDArray[np.uint64]], fields: tuple[str, ...]) -> NDArray[np.float64]:
    """Return the product of the signs of some fields, ``(rows,)``."""
    return np.prod([signs(field)[ranks[field].astype(np.int64)] for field in fields], axis=0)


def signs(field: str) -> NDArray[np.float64]:
    """Return the sign of each value of a field, the most frequent one first; over the rows they sum to about 0."""
    size = SIZES[int(field[1:]) - 1]
    places = np.arange(size)
    shares = np.log((places + 2) / (places + 1)) / np.log(size + 1)
    found, total = np.empty(size), 0.0
    for place, share in enumerate(shares):
        found[place] = -1.0 if total > 0 else 1.0
        total += found[place] * share
    return found


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return numbers that look random, the same for the same ones (the finalizer of MurmurHash3)."""
    shift = np.uint64(33)
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        numbers = (numbers ^ (numbers >> shift)) * np.uint64(factor)
    return numbers ^ (numbers >> shift)
