"""From a piece of a file to a table whose columns have the kinds that the schema says; rows that are none are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bpfree.errors import nearest
from bpfree.lab.data.clicks import parquet
from bpfree.lab.data.clicks.bad_rows import BadRows
from bpfree.lab.data.clicks.encoding import Encoded
from bpfree.lab.data.clicks.joining import SideTable
from bpfree.lab.data.clicks.kinds import typed
from bpfree.lab.data.clicks.schema import Schema
from bpfree.lab.data.clicks.short_columns import short_columns
from bpfree.lab.data.clicks.text_rows import (
    BOM,
    Piece,
    Rows,
    count_regular,
    find_rows,
    names_of,
    starts_with_mark,
    text_pieces,
)
from bpfree.lab.errors import DataError

_ROWS = 2**17  # rows of a piece of a Parquet file


@dataclass(frozen=True)
class Table:
    """The rows of a piece, and what was wrong with others.

    Attributes:
        frame: The columns, see :func:`~bpfree.lab.data.clicks.kinds.typed`.
        bad: Line (of text) or row (of Parquet), counted from 0 in the piece -> what is wrong with it.
        lines: The number of lines, or rows, of the piece.
        encoded: Fields that are not among the columns, but encoded.
    """

    frame: pl.DataFrame
    bad: dict[int, str]
    lines: int
    encoded: Mapping[str, Encoded] = field(default_factory=dict)


@dataclass(frozen=True)
class _Read:
    """The rows of a piece as they were read.

    Attributes:
        frame: The rows.
        lines: The number of lines, or rows, of the piece.
        numbers: The numbers of the rows, if some were left out.
        line: Gives the line in which a row of this number begins.
    """

    frame: pl.DataFrame
    lines: int
    numbers: NDArray[np.int64] | None = None
    line: Callable[[int], int] = int


class Reader:
    """Reads the pieces of a file.

    Args:
        path: The file.
        schema: The schema.
        tables: The tables of ``schema.join``, in that order.
        labelled: Whether the rows need a label; those to predict have none.

    Raises:
        DataError: The file cannot be read, or has not the columns of the schema.
    """

    def __init__(self, path: Path, schema: Schema, tables: tuple[SideTable, ...], *, labelled: bool = True) -> None:
        self.path, self.schema, self.tables, self.labelled = path, schema, tables, labelled
        self.columns, self.begin = _columns(path, schema, labelled=labelled)
        self.lines_before = 1 if self.begin > len(BOM) else 0
        joined = {name for table in tables for name in table.columns}
        wanted = self._wanted()
        self.needed = [name for name in wanted if name not in joined]
        self.needed += [join.key for join in schema.join if join.key not in self.needed]
        for name in self.needed:
            if name not in self.columns:
                where = "columns of the schema" if schema.columns else str(path)
                raise DataError(
                    f"column {name!r} of the schema is not among the columns of {where}. {nearest(name, self.columns)}"
                )

    @property
    def size(self) -> int:
        """The end of its last piece, about, or 0 if that is not known before: how much a packed file becomes."""
        if self.schema.format == "parquet":
            return parquet.count(self.path)
        return 0 if self.path.suffix == ".gz" else self.path.stat().st_size

    def _wanted(self) -> list[str]:
        schema = self.schema
        order = [schema.order_column] if schema.order_column and self.labelled else []
        label = [schema.label.column] if self.labelled else []
        others = [] if self.labelled else schema.identifiers
        return list(dict.fromkeys([*label, *order, *schema.fields, *others]))

    def pieces(self, begin: int) -> Iterator[Piece]:
        """Yield the pieces from one that begins at ``begin``; 0 for the first."""
        if self.schema.format != "parquet":
            quoted = self.schema.separator if self.schema.quoted else None
            yield from text_pieces(self.path, max(begin, self.begin), quoted)
            return
        rows = parquet.count(self.path)
        for first in range(begin, rows, _ROWS):
            yield Piece(first, min(rows, first + _ROWS))

    def table(self, piece: Piece) -> Table:
        """Read a piece.

        Raises:
            DataError: The file is damaged.
        """
        # What is predicted is no log of millions of rows, and columns to join by have to be names.
        plain = self.schema.format != "parquet" and self.labelled and not self.tables
        if plain and (short := self._of_short_fields(piece.content)):
            return short
        bad = BadRows()
        if self.schema.format == "parquet":
            number = piece.end - piece.begin
            read = _Read(parquet.rows(self.path, self.needed, piece.begin, number), number)
        else:
            read = self._of_text(piece.content, bad)
        found = typed(read.frame, self.schema, bad, read.numbers, labelled=self.labelled)
        for table in self.tables:
            found = table.joined(found)
        return Table(found, {read.line(row): reason for row, reason in bad.reasons.items()}, read.lines)

    def _of_short_fields(self, content: bytes) -> Table | None:
        """Read a piece of text, without a parser where fields are short; None if a row may be bad."""
        found = short_columns(content, self.columns, self.needed, self.schema)
        if found is None:
            return None
        others, bad = [name for name in self.needed if name not in found.fields | found.of_rows], BadRows()
        try:
            parsed = self._parsed(content, found.height, numbers=True, only=others)
        except pl.exceptions.PolarsError:
            return None
        frame = typed(pl.DataFrame(found.of_rows | parsed.to_dict()), self.schema, bad, None)
        return None if bad.reasons else Table(frame, {}, found.height, found.fields)

    def _of_text(self, content: bytes, bad: BadRows) -> _Read:
        width, schema = len(self.columns), self.schema
        height = count_regular(content, schema.separator, width, quoted=schema.quoted)
        if height is not None:
            with suppress(pl.exceptions.PolarsError):  # one of the rows is to blame; which one is found below
                return _Read(self._parsed(content, height, numbers=True), height)
        rows, lines = find_rows(content, schema.separator, quoted=schema.quoted), content.count(b"\n")
        good = rows.fields == width
        good[rows.mistaken] = False
        if good.all():
            with suppress(pl.exceptions.PolarsError):
                return _Read(self._parsed(rows.content, len(rows), numbers=True), lines, line=rows.line)
        blank = rows.blank()
        for row in rows.mistaken.tolist():
            bad.add(row, "it has a quote that is not closed, or stands inside of a field; is quotes: false meant?")
        for row in np.flatnonzero(~good & ~blank).tolist():
            bad.add(row, f"it has {rows.fields[row]} field(s) and not {width}; is the file cut here?")
        numbers = np.flatnonzero(good & ~blank)
        frames = list(self._searched(rows, numbers, bad))
        kept = np.array([row for row in numbers.tolist() if row not in bad.reasons], np.int64)
        return _Read(pl.concat(frames) if frames else self._parsed(b"", 0, numbers=False), lines, kept, rows.line)

    def _searched(self, rows: Rows, numbers: NDArray[np.int64], bad: BadRows) -> Iterator[pl.DataFrame]:
        """Yield the rows with these numbers as text; those that polars refuses are found by halving."""
        if not len(numbers):
            return
        which = np.zeros(len(rows), bool)
        which[numbers] = True
        try:
            yield self._parsed(rows.chosen(which), len(numbers), numbers=False)
        except pl.exceptions.PolarsError as error:
            if len(numbers) == 1:
                said = "is no UTF-8 text" if "utf-8" in str(error) else f"cannot be parsed: {error}"
                bad.add(int(numbers[0]), f"it {said}")
                return
            for half in np.array_split(numbers, 2):
                yield from self._searched(rows, half, bad)

    def _parsed(self, content: bytes, height: int, *, numbers: bool, only: Sequence[str] | None = None) -> pl.DataFrame:
        """Parse the needed columns of whole rows, or some; columns of numbers become numbers, or stay text.

        Raises:
            PolarsError: A row is none, or a number is none.
        """
        schema, names = self.schema, self.needed if only is None else only
        of_rows = (schema.label.column, schema.order_column) if self.labelled else ()
        of_numbers = {*of_rows, *schema.numeric} - {*schema.categorical}
        kinds = {name: pl.Float64 if numbers and name in of_numbers else pl.String for name in self.columns}
        if not height or not names:
            return pl.DataFrame(schema={name: kinds[name] for name in names})
        found = pl.read_csv(
            content,
            has_header=False,
            separator=schema.separator,
            quote_char='"' if schema.quoted else None,
            schema=kinds,
            columns=[self.columns.index(name) for name in names],
            null_values=list(schema.missing) or None,
        )
        if found.height != height:
            raise pl.exceptions.ComputeError(f"{found.height} rows in place of {height}")
        return found


def _columns(path: Path, schema: Schema, *, labelled: bool) -> tuple[list[str], int]:
    """Return the names of a file's columns, and where its rows begin."""
    if schema.format == "parquet":
        return parquet.columns(path), 0
    if schema.columns is not None:
        columns = list(schema.columns)
        if not labelled and len(names_of(path, schema)[0]) == len(columns) - 1:
            columns.remove(schema.label.column)
        return columns, len(BOM) if starts_with_mark(path) else 0
    names, begin = names_of(path, schema)
    if not begin:
        raise DataError(f"{path} is empty. Finish its copy, or delete it.")
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path}: the first line names column {name!r} twice. Rename one of the two.")
    return names, begin
