"""The second half of caching: a column of all pieces becomes identifiers, by a vocabulary of its training part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bpfree.lab.data.clicks.encoding import Encoded, dtype_for
from bpfree.lab.data.clicks.parts import Parts
from bpfree.lab.data.clicks.piece_file import PieceFile
from bpfree.lab.data.clicks.schema import PARTS, Part
from bpfree.lab.data.clicks.short_text import text_of
from bpfree.lab.data.clicks.vocabulary import Vocabulary
from bpfree.lab.disk.files import replacing

_LOOKED_UP = 2**22  # different values of pieces that are looked up at once, or as many as have an identifier


def learn(name: str, pieces: Sequence[PieceFile], parts: Parts, min_count: int) -> Vocabulary:
    """Learn the vocabulary of a column from the training rows."""

    def counted() -> Iterator[tuple[pl.Series, NDArray[np.int64]]]:
        for number, column in enumerate(_columns(name, pieces)):
            rows = parts.rows(number).get("train")
            counts = np.zeros(len(column.values), np.int64) if rows is None else column.counts(rows)
            yield column.values, counts

    return Vocabulary.learned(counted(), min_count)


def write_ids(
    path: Path,
    name: str,
    pieces: Sequence[PieceFile],
    parts: Parts,
    counts: dict[Part, int],
    vocabulary: Vocabulary,
) -> None:
    """Write the identifiers of a column, see :func:`write_numbers`.

    Raises:
        WriteError: The file could not be written.
    """
    rows = (
        (number, ids[column.codes])
        for numbers, columns, values in _together(name, pieces, max(_LOOKED_UP, vocabulary.size))
        for number, column, ids in zip(numbers, columns, _split(vocabulary.ids(values), columns), strict=True)
    )
    write_numbers(path, dtype_for(vocabulary.size), rows, parts.rows, counts)


def _together(
    name: str, pieces: Sequence[PieceFile], most: int
) -> Iterator[tuple[list[int], list[Encoded], pl.Series]]:
    """Yield several pieces' numbers, columns and values: to look values up one piece at a time would take longer."""
    numbers, columns, size = list[int](), list[Encoded](), 0
    for number, column in enumerate(_columns(name, pieces)):
        numbers.append(number)
        columns.append(column)
        size += len(columns[-1].values)
        if size > most or number == len(pieces) - 1:
            yield numbers, columns, pl.concat([column.values for column in columns])
            numbers, columns, size = [], [], 0


def _columns(name: str, pieces: Sequence[PieceFile]) -> Iterator[Encoded]:
    """Yield a column of each piece: all as short text, or none."""
    short = all(piece.is_short(name) for piece in pieces)
    for piece in pieces:
        column = piece.encoded(name)
        yield column if short else Encoded(column.codes, text_of(column.values))


def _split(ids: NDArray[np.uint32], columns: Sequence[Encoded]) -> Iterator[NDArray[np.uint32]]:
    """Yield the identifiers of each column's values."""
    ends = np.cumsum([len(column.values) for column in columns])
    yield from np.split(ids, ends[:-1])


def write_numbers(
    path: Path,
    dtype: np.dtype[Any],
    rows: Iterable[tuple[int, NDArray[Any]]],
    places: Callable[[int], Any],
    counts: dict[Part, int],
) -> None:
    """Write a number for each row: first those of training, then of validation, then of test, each in the log's order.

    Args:
        path: The file.
        dtype: The kind of number in it.
        rows: The number of each piece, and the numbers of its rows.
        places: Gives the rows of a piece by part.
        counts: The number of rows of each part.

    Raises:
        WriteError: It could not be written.
    """
    firsts = np.cumsum([0, *(counts[part] for part in PARTS)])[:-1] * dtype.itemsize
    cursors = dict(zip(PARTS, firsts.tolist(), strict=True))
    with replacing(path) as temporary, temporary.open("r+b") as stream:
        for number, values in rows:
            for part, chosen in places(number).items():
                data = values[chosen].astype(dtype, copy=False).tobytes()
                stream.seek(cursors[part])
                stream.write(data)
                cursors[part] += len(data)
