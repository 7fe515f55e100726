"""From files that a model never saw to its identifiers: the schema and the vocabularies of the log it learned from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from bpfree.lab.data.clicks.bad_rows import BadLines
from bpfree.lab.data.clicks.cache import vocabulary_name
from bpfree.lab.data.clicks.encoding import encoded
from bpfree.lab.data.clicks.joining import SideTable, read_side_table
from bpfree.lab.data.clicks.loading import Clicks
from bpfree.lab.data.clicks.reading import Reader
from bpfree.lab.data.clicks.schema import Schema
from bpfree.lab.data.clicks.schema_file import schema_of
from bpfree.lab.data.clicks.sources import joined_files
from bpfree.lab.data.clicks.vocabulary import Vocabulary
from bpfree.lab.disk.files import make_folder, read_json, replacing, storable, write_json
from bpfree.lab.errors import DamageError, DataError

_FACTS = "schema.json"


class Encoder:
    """Gives rows of files the identifiers that they would have had in training.

    Args:
        schema: The schema of the log.
        vocabularies: Those of the fields, in their order.
        tables: The tables that the log was joined with.
    """

    def __init__(self, schema: Schema, vocabularies: Sequence[Vocabulary], tables: Sequence[SideTable] = ()) -> None:
        self.schema, self.vocabularies, self.tables = schema, tuple(vocabularies), tuple(tables)

    @classmethod
    def of(cls, clicks: Clicks) -> Encoder:
        """Return that of a log that was loaded."""
        count, schema = len(clicks.names), clicks.schema
        vocabularies = [Vocabulary.load(clicks.cache.vocabulary_file(number)) for number in range(count)]
        joined = zip(joined_files(clicks.folder, schema), schema.join, strict=True)
        return cls(schema, vocabularies, [read_side_table(path, join, schema) for path, join in joined])

    def save(self, folder: Path) -> None:
        """Write it into a folder: a model needs it as long as it lives, and the cache may be deleted.

        Raises:
            WriteError: A file could not be written.
        """
        make_folder(folder)
        for number, vocabulary in enumerate(self.vocabularies):
            vocabulary.save(folder / vocabulary_name(number))
        for number, table in enumerate(self.tables):
            with replacing(folder / f"{number:04d}.table") as temporary:
                table.frame.write_ipc(temporary, compression="zstd")
        write_json(folder / _FACTS, {"schema": json.loads(json.dumps(asdict(self.schema)))})

    @classmethod
    def load(cls, folder: Path) -> Encoder:
        """Read one that :meth:`save` has written.

        Raises:
            DamageError: It is not whole.
        """
        schema = schema_of(read_json(folder / _FACTS)["schema"])
        try:
            vocabularies = [Vocabulary.load(folder / vocabulary_name(number)) for number in range(len(schema.fields))]
            frames = [pl.read_ipc(folder / f"{number:04d}.table") for number in range(len(schema.join))]
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DamageError(f"{folder} is not whole ({error}). Train the model again, or copy it again.") from error
        tables = [SideTable(join.key, frame) for join, frame in zip(schema.join, frames, strict=True)]
        return cls(schema, vocabularies, tables)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of identifiers of each field."""
        return tuple(vocabulary.size for vocabulary in self.vocabularies)

    def rows(self, path: Path) -> Iterator[tuple[dict[str, list[str | None]], Tensor]]:
        """Yield the rows of a file, in their order and some 100,000 at a time. It needs no labels.

        Args:
            path: A file of the schema's format. Where that gives names of columns, the label may be left out.

        Yields:
            The columns ``schema.identifiers``, as text, and identifiers, int64 ``(k, fields)``.

        Raises:
            DataError: The file is missing or damaged, lacks a column, or has more bad rows than the schema allows; or
                one at all where the schema has no ``identifiers``, by which the others could be told.
        """
        schema = self.schema if self.schema.identifiers else replace(self.schema, bad_rows=0)
        if not path.is_file():
            raise DataError(f"{path} is missing. Name a file of the format {schema.format}.")
        reader, bad = Reader(path, schema, self.tables, labelled=False), BadLines()
        lines = reader.lines_before
        for piece in reader.pieces(0):
            table = reader.table(piece)
            bad.add(storable(path.name), lines, sorted(table.bad.items()), len(table.bad))
            bad.check(schema.bad_rows)
            lines += table.lines
            if table.frame.height:
                yield {name: table.frame[name].to_list() for name in schema.identifiers}, self._ids(table.frame)

    def _ids(self, frame: pl.DataFrame) -> Tensor:
        found = np.empty((frame.height, len(self.vocabularies)), np.int64)
        for number, (name, vocabulary) in enumerate(zip(self.schema.fields, self.vocabularies, strict=True)):
            column = encoded(frame[name])
            found[:, number] = vocabulary.ids(column.values)[column.codes]
        return torch.from_numpy(found)
