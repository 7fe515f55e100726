"""Small tables with more columns of users, items and the like, which the rows of a log are joined with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from bpfree.errors import nearest
from bpfree.lab.data.clicks import parquet
from bpfree.lab.data.clicks.schema import Join, Schema
from bpfree.lab.data.clicks.text_rows import find_rows, names_of
from bpfree.lab.disk.bounded import pieces
from bpfree.lab.errors import DataError


@dataclass(frozen=True)
class SideTable:
    """A small table with more columns.

    Attributes:
        key: The column that it shares with the log.
        frame: That column (String), and those that the schema names: numbers as Float64, others as String.
    """

    key: str
    frame: pl.DataFrame

    @property
    def columns(self) -> list[str]:
        """The columns that it adds."""
        return [name for name in self.frame.columns if name != self.key]

    def joined(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the rows with the columns added; missing in those whose key the table has not."""
        return rows.join(self.frame, on=self.key, how="left", maintain_order="left")


def read_side_table(path: Path, join: Join, schema: Schema) -> SideTable:
    """Read the table of a ``join``.

    Raises:
        DataError: It cannot be read, has no such column, a row of too few fields, or the same key twice.
    """
    frame = (
        _text_table(path, schema)
        if schema.format != "parquet"
        else parquet.rows(path, parquet.columns(path), 0, parquet.count(path))
    )
    if join.key not in frame.columns:
        raise DataError(f"join: {path} has no column {join.key!r}. {nearest(join.key, frame.columns)}")
    frame = frame.select(join.key, *[name for name in schema.fields if name in frame.columns and name != join.key])
    if frame[join.key].is_duplicated().any():
        twice = frame.filter(frame[join.key].is_duplicated())[join.key][0]
        raise DataError(f"{path} has several rows of {join.key} {twice}: which one is meant? Leave one.")
    return SideTable(join.key, _with_kinds(frame, join.key, schema, path))


def _with_kinds(frame: pl.DataFrame, key: str, schema: Schema, path: Path) -> pl.DataFrame:
    columns = {}
    for series in frame:
        text = series.cast(pl.String)
        if series.name not in schema.numeric:
            columns[series.name] = text
            continue
        number = text.str.strip_chars().cast(pl.Float64, strict=False).fill_nan(None)
        wrong = number.is_null() & text.is_not_null() & (text != "") | number.is_infinite()
        if wrong.any():
            raise DataError(
                f"{path}: {series.name} of {key} {frame.filter(wrong)[key][0]} is no number: {text.filter(wrong)[0]!r}."
            )
        columns[series.name] = number
    return pl.DataFrame(columns)


def _text_table(path: Path, schema: Schema) -> pl.DataFrame:
    names, begin = names_of(path, schema)
    rows = find_rows(b"".join(pieces(path))[begin:], schema.separator, quoted=schema.quoted)
    good = (rows.fields == len(names)) | rows.blank()
    if not good.all():
        row = int((~good).argmax())
        raise DataError(
            f"{path}, line {rows.line(row) + 2}: {rows.fields[row]} field(s) and not {len(names)}. Mend the line."
        )
    try:
        return pl.read_csv(
            rows.chosen(~rows.blank()),
            has_header=False,
            separator=schema.separator,
            quote_char='"' if schema.quoted else None,
            schema=dict.fromkeys(names, pl.String),
            null_values=list(schema.missing) or None,
        )
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path} cannot be read ({str(error).splitlines()[0]}). Mend the file.") from error
