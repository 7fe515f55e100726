"""The parts of a log, train, validation and test: the rows of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from bpfree.lab.data.batches import generator
from bpfree.lab.data.clicks.kinds import ORDER
from bpfree.lab.data.clicks.piece_file import PieceFile
from bpfree.lab.data.clicks.schema import AS_WRITTEN, PARTS, RANDOM, Part, Schema, Split
from bpfree.lab.data.clicks.sources import Source

Places: TypeAlias = NDArray[np.int64] | slice
"""Rows of a piece: their numbers, or all of them from one to another."""


def drawn_order(rows: int, split: Split, number: int) -> NDArray[np.int64]:
    """Return the rows of a piece, those of training first, then those of validation: the order in which they are kept.

    Which rows a part has is drawn; within a part they are in the order of the log. Each piece has as many rows of each
    part as the fractions say.

    Args:
        rows: The number of rows.
        split: The fractions, and the seed.
        number: The number of the piece.
    """
    drawn = torch.randperm(rows, generator=generator("split", split.seed, number)).numpy()
    return np.concatenate([np.sort(part) for part in np.split(drawn, _bounds(rows, split))])


def _bounds(rows: float, split: Split) -> NDArray[np.int64]:
    """Return where the second and the third part begin among so many rows."""
    return np.rint(np.cumsum(split.fractions)[:-1] * rows).astype(np.int64)


class Parts:
    """The rows of each piece by part.

    Args:
        schema: The schema.
        sources: The files of the log.
        pieces: The pieces.
    """

    def __init__(self, schema: Schema, sources: Sequence[Source], pieces: Sequence[PieceFile]) -> None:
        self._schema, self._sources, self._pieces = schema, sources, pieces
        self._starts = np.cumsum([0, *(piece.rows for piece in pieces)])
        self._values = _values(pieces, schema.split) if schema.order_column else np.empty(0)

    def rows(self, number: int) -> dict[Part, Places]:
        """Return the rows of a piece by part; parts without one are left out."""
        piece, split = self._pieces[number], self._schema.split
        if isinstance(self._schema.files, Mapping):
            part = self._sources[piece.facts["source"]].part
            return {part: slice(0, piece.rows)} if part and piece.rows else {}
        if self._schema.order_column:
            parts = np.searchsorted(self._values, piece.plain(ORDER), side="left")
            found = {part: np.flatnonzero(parts == place) for place, part in enumerate(PARTS)}
            return {part: places for part, places in found.items() if len(places)}
        if split.order == RANDOM:
            bounds = _bounds(piece.rows, split)
        else:
            assert split.order == AS_WRITTEN
            bounds = np.clip(_bounds(int(self._starts[-1]), split) - self._starts[number], 0, piece.rows)
        edges = [0, *bounds.tolist(), piece.rows]
        spans = zip(PARTS, edges, edges[1:], strict=False)
        return {part: slice(first, end) for part, first, end in spans if first < end}

    def counts(self) -> dict[Part, int]:
        """Return the number of rows of each part."""
        found: dict[Part, int] = dict.fromkeys(PARTS, 0)
        for number in range(len(self._pieces)):
            for part, places in self.rows(number).items():
                found[part] += places.stop - places.start if isinstance(places, slice) else len(places)
        return found


def _values(pieces: Sequence[PieceFile], split: Split) -> NDArray[np.float64]:
    """Return the last value of the column by which rows are split that is of training, and of validation."""
    rows = sum(piece.rows for piece in pieces)
    return np.array([_least(pieces, bound) for bound in _bounds(rows, split).tolist()])


def _least(pieces: Sequence[PieceFile], wanted: int) -> float:
    """Return the least number that so many rows do not exceed.

    It is found by halving the numbers of 64 bits, reading the rows' own again each time: they need not fit in memory.
    """
    low, high = _rank(-np.inf), _rank(np.inf)
    while low < high:
        middle = (low + high) // 2
        bound = _unranked(middle)
        if sum(int((piece.plain(ORDER) <= bound).sum()) for piece in pieces) >= wanted:
            high = middle
        else:
            low = middle + 1
    return _unranked(low)


def _rank(number: float) -> int:
    """Return a whole number of 64 bits that has the order of floating-point numbers."""
    bits = int(np.float64(number).view(np.int64))
    return bits if bits >= 0 else -(bits & 0x7FFF_FFFF_FFFF_FFFF)


def _unranked(rank: int) -> float:
    return float(np.int64(rank).view(np.float64)) if rank >= 0 else -float(np.int64(-rank).view(np.float64))
