"""The vocabulary of a column: which values have an identifier of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bpfree.lab.data.clicks.short_text import numbered, text_of
from bpfree.lab.disk.files import replacing

UNSEEN, MISSING, FIRST = 0, 1, 2
"""The identifiers of values that training has not seen often enough, of missing ones, and of the most frequent one."""
_HELD = 2**21  # different values of pieces that are put together at once; more only if the column has more


class Vocabulary:
    """The values of a column that have an identifier of their own, by count and then by value.

    Args:
        values: These values, String, Int64, or short text as UInt64
            (:mod:`~bpfree.lab.data.clicks.short_text`); the first one has the identifier :data:`FIRST`.
    """

    def __init__(self, values: pl.Series) -> None:
        self.values = values
        numbers = pl.Series(np.arange(FIRST, FIRST + len(values), dtype=np.uint32))
        self._table = pl.DataFrame({"v": values, "id": numbers})
        if values.dtype == pl.String:
            # An empty field in quotes is no value either.
            empty = pl.DataFrame({"v": [""], "id": [MISSING]}, schema={"v": pl.String, "id": pl.UInt32})
            self._table = pl.concat([self._table, empty])

    @classmethod
    def learned(cls, pieces: Iterable[tuple[pl.Series, NDArray[np.int64]]], min_count: int) -> Vocabulary:
        """Learn a vocabulary.

        Args:
            pieces: For each piece its different values, and how often each occurs in training.
            min_count: Rarer values are left out.
        """
        found = pl.concat(list(_summed(pieces)))
        value, kind = pl.col("v"), found["v"].dtype
        present = value.is_not_null() if kind == pl.Int64 else value != (0 if kind == pl.UInt64 else "")
        found = found.filter(present & (pl.col("n") >= min_count))
        return cls(found.sort("n", "v", descending=[True, False])["v"])

    @property
    def size(self) -> int:
        """The number of identifiers."""
        return FIRST + len(self.values)

    def ids(self, values: pl.Series) -> NDArray[np.uint32]:
        """Return the identifier of each value, ``(n,)``; that of none is :data:`MISSING`."""
        if values.dtype == pl.UInt64:
            return self._ids_of_short(values.to_numpy())
        found = pl.DataFrame({"v": values}).join(self._table, on="v", how="left", maintain_order="left")
        ids = found["id"].fill_null(UNSEEN).to_numpy()
        return np.where(values.is_null().to_numpy(), MISSING, ids).astype(np.uint32) if values.null_count() else ids

    def _ids_of_short(self, texts: NDArray[np.uint64]) -> NDArray[np.uint32]:
        known = np.concatenate([np.zeros(1, np.uint64), self.values.to_numpy()])
        places, different = numbered(np.concatenate([known, texts]))
        ids = np.full(len(different), UNSEEN, np.uint32)
        ids[places[: len(known)]] = np.arange(MISSING, MISSING + len(known))
        return ids[places[len(known) :]]

    def save(self, path: Path) -> None:
        """Write it to a file: bins as numbers, and text as text.

        Raises:
            WriteError: It could not be written.
        """
        with replacing(path) as temporary:
            pl.DataFrame({"v": text_of(self.values)}).write_ipc(temporary, compression="zstd")

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read one that :meth:`save` has written."""
        return cls(pl.read_ipc(path)["v"])


def _summed(pieces: Iterable[tuple[pl.Series, NDArray[np.int64]]]) -> Iterator[pl.DataFrame]:
    """Yield one table of different values ``v`` and their counts ``n``, holding no more than twice what it has."""
    held, waiting, rows = list[pl.DataFrame](), list[pl.DataFrame](), 0
    for values, counts in pieces:
        some = counts > 0
        waiting.append(pl.DataFrame({"v": values, "n": counts}).filter(pl.Series(some)))
        rows += len(waiting[-1])
        if rows > max(_HELD, sum(map(len, held))):
            held, waiting, rows = [_added(held + waiting)], [], 0
    yield _added(held + waiting)


def _added(tables: list[pl.DataFrame]) -> pl.DataFrame:
    rows = pl.concat(tables)
    if rows["v"].dtype == pl.UInt64:
        places, values = numbered(rows["v"].to_numpy())
        # Sums of floating-point numbers that are whole, exact below 2^53.
        counts = np.bincount(places, rows["n"].to_numpy(), len(values)).astype(np.int64)
        return pl.DataFrame({"v": values, "n": counts})
    # The streaming engine takes half the time of the other one, and a third of its memory.
    return rows.lazy().group_by("v").agg(pl.col("n").sum()).collect(engine="streaming")
