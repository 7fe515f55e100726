"""From a column's values to numbers within a piece: the values that occur in it, and for each row which of them it has.

A column of numbers has bins in place of values, as in the code of Launay et al. 2020 (torchfm 0.7.0): ``v - 2`` up to 2
and ``floor(ln(v)^2)`` above, so that 2, 3 and 5 begin bins, and 3 and 4 share one, or 8 and 9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

_SPAN = 2**16  # bins from the least to the greatest that are listed, whether they occur or not
_FARTHEST = 2.0**62  # numbers below minus this share a bin


@dataclass(frozen=True)
class Encoded:
    """A column of a piece.

    Attributes:
        codes: For each row the place of its value among ``values``.
        values: Different values, some of which need not occur: Int64 (bins) or String, with null for a missing one; or
            UInt64, short text, see :mod:`~bpfree.lab.data.clicks.short_text`.
    """

    codes: NDArray[Any]
    values: pl.Series

    def at(self, rows: NDArray[Any]) -> Encoded:
        """Return the column that has these rows of this one, ``(k,)``."""
        return Encoded(self.codes[rows], self.values)

    def counts(self, rows: NDArray[np.int64] | slice) -> NDArray[np.int64]:
        """Return how often each value occurs in these rows."""
        return np.bincount(self.codes[rows], minlength=len(self.values))


def encoded(series: pl.Series) -> Encoded:
    """Encode a column: numbers (Float64) by their bins, text as it is."""
    return _numbers(series) if series.dtype == pl.Float64 else _text(series)


def bins(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the bin of each number, whole ones and NaN where there is none, ``(n,)``.

    Args:
        numbers: Finite numbers, or NaN, ``(n,)``. Below 2 they are rounded down first: those from 0 to below 1 share a
            bin.
    """
    found = np.floor(np.maximum(numbers, -_FARTHEST))  # of these two NaN is the maximum
    found -= 2
    large = np.log(np.fmax(numbers, 2.0))
    large *= large
    np.copyto(found, np.floor(large, out=large), where=numbers > 2)
    return found


def _text(series: pl.Series) -> Encoded:
    # For each row the first one that has its value: what polars counts in a group without a table of groups.
    table = series.to_frame("v").with_row_index("i")
    first = table.select(pl.col("i").first().over("v"))["i"].to_numpy()
    begins = first == np.arange(len(first), dtype=first.dtype)
    places = np.cumsum(begins, dtype=np.uint32)[first] - np.uint32(1) if len(first) else first
    values = series.filter(pl.Series(begins))
    return Encoded(narrow(places, len(values)), values)


def _numbers(series: pl.Series) -> Encoded:
    found = bins(series.to_numpy())  # missing ones are NaN
    missing = np.isnan(found)
    if missing.all():
        return Encoded(np.zeros(len(found), np.uint8), pl.Series([None], dtype=pl.Int64))
    least, greatest = np.fmin.reduce(found), np.fmax.reduce(found)
    if greatest - least < _SPAN:
        values = np.arange(int(least), int(greatest) + 1)
        found -= least
    else:
        values = np.unique(found[~missing]).astype(np.int64)
        found = np.searchsorted(values, found).astype(np.float64)
    np.copyto(found, len(values), where=missing)
    return Encoded(narrow(found, len(values) + 1), pl.Series([*values.tolist(), None], dtype=pl.Int64))


def narrow(codes: NDArray[Any], count: int) -> NDArray[Any]:
    """Return codes as the smallest kind of number that holds ``count`` different ones."""
    return codes.astype(dtype_for(count), copy=False)


def dtype_for(count: int) -> np.dtype[Any]:
    """Return the smallest kind of little-endian number that holds ``count`` different ones from 0 on."""
    return np.dtype("u1" if count <= 2**8 else "<u2" if count <= 2**16 else "<u4")
