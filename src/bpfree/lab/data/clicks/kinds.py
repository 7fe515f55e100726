"""The kinds of the columns of a log: labels, numbers and names, and the rows in which they are none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bpfree.lab.data.clicks.bad_rows import BadRows
from bpfree.lab.data.clicks.schema import Schema

LABEL, ORDER = "label of a row", "place of a row"
"""The columns beside the fields: 0 or 1, and the numbers by which rows are split."""
_NO_LABEL = "is no label, which is 0 or 1; ratings and the like become clicks by {column: NAME, threshold: NUMBER}"
_Refuse = Callable[[pl.Series, str], None]


def typed(
    frame: pl.DataFrame, schema: Schema, bad: BadRows, numbers: NDArray[np.int64] | None, *, labelled: bool = True
) -> pl.DataFrame:
    """Return the rows with columns of the right kinds; rows with values that are none are left out.

    Args:
        frame: The rows as they were read.
        schema: The schema.
        bad: Takes the rows that are left out.
        numbers: The numbers of the rows in the piece; None for all from 0 on.
        labelled: Whether there is a label.

    Returns:
        :data:`LABEL` (UInt8), :data:`ORDER` (Float64) where rows are split by a column, numeric columns (Float64, null
        where missing), others (String, null or empty where missing).
    """
    kept = np.ones(len(frame), bool)

    def refuse(name: str) -> _Refuse:
        def note(which: pl.Series, why: str) -> None:
            for row in which.fill_null(False).arg_true().to_list():
                bad.add(row if numbers is None else int(numbers[row]), f"{name}: {frame[name][row]!r} {why}")
                kept[row] = False

        return note

    columns, name = dict[str, pl.Series](), schema.label.column
    if labelled:
        columns[LABEL] = _labels(frame[name], schema.label.threshold, refuse(name))
        if schema.order_column:
            columns[ORDER] = _places(frame[schema.order_column], refuse(schema.order_column))
    for series in frame:
        if series.name in schema.numeric:
            columns[series.name] = _numbers(series, refuse(series.name))
        elif not labelled or series.name in schema.fields or series.name not in (name, schema.order_column):
            columns[series.name] = series.cast(pl.String)
    found = pl.DataFrame(columns)
    return found if kept.all() else found.filter(pl.Series(kept))


def as_numbers(text: pl.Series) -> pl.Series | None:
    """Return a column of text as numbers (Float64), null where a value is missing; None if one is no finite number."""
    wrong = list[str]()
    found = _numbers(text, lambda which, why: wrong.append(why) if which.fill_null(False).any() else None)
    return None if wrong else found


def _labels(series: pl.Series, threshold: float | None, refuse: _Refuse) -> pl.Series:
    value = _numbers(series, refuse)
    refuse(value.is_null(), "is no label")
    if threshold is None:
        refuse((value != 0) & (value != 1), _NO_LABEL)
    clicked = value == 1 if threshold is None else value >= threshold
    return clicked.fill_null(False).cast(pl.UInt8)


def _places(series: pl.Series, refuse: _Refuse) -> pl.Series:
    value = _numbers(series, refuse)
    refuse(value.is_null(), "has no place in the order of split")
    return value


def _numbers(series: pl.Series, refuse: _Refuse) -> pl.Series:
    """Return a column of numbers, null where a value is missing."""
    if series.dtype != pl.Float64:
        # As polars' reader of CSV does, which takes blanks before a number for nothing; behind it, too.
        given = series.str.strip_chars() if series.dtype == pl.String else series
        found = given.cast(pl.Float64, strict=False)
        empty = given == "" if given.dtype == pl.String else given.is_null()
        refuse(found.is_null() & given.is_not_null() & ~empty.fill_null(True), "is no number")
        series = found
    if series.is_infinite().any():
        refuse(series.is_infinite(), "is no finite number")
    return series.fill_nan(None)
