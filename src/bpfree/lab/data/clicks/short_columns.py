"""The columns of a piece of text whose fields are short: encoded without a parser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from bpfree.lab.data.clicks.encoding import Encoded, encoded, narrow
from bpfree.lab.data.clicks.kinds import as_numbers
from bpfree.lab.data.clicks.schema import Schema
from bpfree.lab.data.clicks.short_fields import short_fields
from bpfree.lab.data.clicks.short_text import as_text, numbered, of_words


@dataclass(frozen=True)
class ShortColumns:
    """The short columns of a piece; a name may be in both.

    Attributes:
        height: The number of rows of the piece.
        fields: Those that models get.
        of_rows: Numbers by which rows are labelled and split, Float64.
    """

    height: int
    fields: dict[str, Encoded]
    of_rows: dict[str, pl.Series]


def short_columns(content: bytes, names: Sequence[str], needed: Sequence[str], schema: Schema) -> ShortColumns | None:
    """Return the needed columns that are short.

    Args:
        content: The bytes of the piece.
        names: The names of all columns.
        needed: Those of the needed ones.
        schema: The schema.

    Returns:
        None where the rows have to be looked at one by one: some may be bad.
    """
    places = {names.index(name): name for name in needed}
    found = short_fields(content, schema.separator, len(names), list(places), quoted=schema.quoted)
    if found is None:
        return None
    missing = of_words(schema.missing)
    columns = ShortColumns(found[0], {}, {})
    for place, texts in found[1].items():
        name = places[place]
        codes, values = numbered(texts)
        values[np.isin(values, missing)] = 0
        if name in schema.categorical:
            columns.fields[name] = Encoded(narrow(codes, len(values)), pl.Series(values))
        of_rows = name in (schema.label.column, schema.order_column)
        if not (of_rows or name in schema.numeric):
            continue
        numbers = as_numbers(as_text(values))
        if numbers is None:
            return None
        if name in schema.numeric:
            columns.fields[name] = encoded(numbers).at(codes)
        if of_rows:
            columns.of_rows[name] = numbers.gather(codes)
    return columns
