"""A log of clicks, ready for training: its parts as rows of identifiers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bpfree.lab.data.clicks.cache import Cache, place, source_checksums
from bpfree.lab.data.clicks.rows import Rows
from bpfree.lab.data.clicks.schema import Schema
from bpfree.lab.data.clicks.schema_file import read_schema
from bpfree.lab.data.clicks.settings import ClickSettings, MeasuredOn
from bpfree.lab.data.clicks.sources import Source, find_sources, joined_files
from bpfree.lab.data.clicks.summary import summary
from bpfree.lab.disk.checksums import checksum
from bpfree.lab.disk.files import storable
from bpfree.lab.errors import DataError, SettingsError
from bpfree.lab.extras import missing
from bpfree.lab.process.console import make_console

NAMED = ("criteo", "criteo-10k", "avazu", "movielens")
"""The data sets whose schemas the package has."""
LOGS = ("clicks", *NAMED)
"""These, and any log that a user's schema describes."""


@dataclass(frozen=True)
class Clicks:
    """A log of clicks, ready for training.

    Attributes:
        name: The name of the data set, or of the log's folder.
        folder: The folder of its files.
        schema: Its schema.
        cache: Its cache, in which the vocabularies are.
        train: The rows for training.
        validation: The rows for early stopping and for choosing settings; vocabularies are learned from neither these
            nor those of ``test``.
        test: The rows to measure on once.
        measured_on: Which of the two metrics are measured on.
        checksums: File -> SHA-256 of what was read; ``schema`` of the schema.
    """

    name: str
    folder: Path
    schema: Schema
    cache: Cache
    train: Rows
    validation: Rows
    test: Rows
    measured_on: MeasuredOn = "validation"
    checksums: dict[str, str] = field(default_factory=dict)

    @property
    def evaluation(self) -> Rows:
        """The rows that metrics and alignment are measured on."""
        return self.validation if self.measured_on == "validation" else self.test

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the fields."""
        return tuple(entry.name for entry in self.cache.fields)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of identifiers of each field, those of unseen and of missing values among them."""
        return tuple(entry.size for entry in self.cache.fields)

    @property
    def shape(self) -> tuple[int, ...]:
        """The :attr:`sizes`: a row is an index into an array of this shape, which is how models see it."""
        return self.sizes

    @property
    def classes(self) -> int:
        """The number of outputs: one, the logit of a click."""
        return 1

    def first(self, n: int) -> Clicks:
        """Return the same with the first ``n`` rows to train on."""
        return replace(self, train=self.train.first(n))

    def describe(self) -> dict[str, Any]:
        """Return the log as a report shows it."""
        counts, clicks = self.cache.counts, self.cache.clicks
        return {
            "name": self.name,
            "n_train": len(self.train),
            "n_eval": len(self.evaluation),
            "measured_on": self.measured_on,
            "fields": len(self.names),
            "identifiers": sum(self.sizes),
            "click_rate": sum(clicks.values()) / sum(counts.values()),
            "bad_rows": self.cache.facts["bad_rows"],
            "checksums": self.checksums,
        }


def load_clicks(
    data_dir: Path | None, settings: ClickSettings | None = None, name: str = "clicks", console: Console | None = None
) -> Clicks:
    """Read a log of clicks; its rows are kept in the cache folder, as identifiers.

    Vocabularies are learned from the training part alone, so an identifier stands for a value that is seen often enough
    there. torchfm 0.7.0 counts all rows.

    Args:
        data_dir: The folder with the log's files.
        settings: The options for reading it.
        name: ``"clicks"``, or one of :data:`NAMED`, which has a schema of its own.
        console: Where progress and, once, a summary are printed; by default standard output.

    Raises:
        SettingsError: There is no schema, or it is none, or a package is not installed.
        DataError: No folder is given; a file is missing, empty or damaged, lacks a column, or has more bad rows than
            the schema allows; there is no row to measure on.
        WriteError: The cache cannot be written.
    """
    settings = settings or ClickSettings()
    schema = _schema(name, settings)
    folder, sources, joined, checksums = _files(data_dir, schema, name)
    try:
        # Imported here: polars comes with an extra, and a log that is cached needs it for predictions alone.
        from bpfree.lab.data.clicks.caching import cached
    except ModuleNotFoundError as error:
        raise SettingsError(f"--data {name}: {missing(error) or error}") from error
    console = console or make_console()
    cache, made = cached(place(schema, sources, checksums), schema, sources, joined, checksums, console)
    if made:
        console.print(summary(cache))
    _check(cache, schema, settings)
    parts = Rows.of(cache)
    return Clicks(
        name=name if name in NAMED else storable(folder.resolve().name),
        folder=folder,
        schema=schema,
        cache=cache,
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        measured_on=settings.measured_on,
        checksums=checksums | {"schema": checksum(schema.describe())},
    )


def checksums(data_dir: Path | None, settings: ClickSettings | None = None, name: str = "clicks") -> dict[str, str]:
    """Return, by name, the SHA-256 of what :func:`load_clicks` reads, and that of the schema.

    Raises:
        SettingsError: As of :func:`load_clicks`.
        DataError: A file is missing, or cannot be read.
    """
    schema = _schema(name, settings or ClickSettings())
    return _files(data_dir, schema, name)[3] | {"schema": checksum(schema.describe())}


def _files(data_dir: Path | None, schema: Schema, name: str) -> tuple[Path, list[Source], list[Path], dict[str, str]]:
    """Return a log's folder, its files, those of the tables it is joined with, and the checksums of both."""
    if data_dir is None:
        raise DataError(f"{name} needs --data-dir DIR, the folder with the files of the log.")
    sources, joined = find_sources(data_dir, schema), joined_files(data_dir, schema)
    return data_dir, sources, joined, source_checksums(sources, joined)


def _schema(name: str, settings: ClickSettings) -> Schema:
    if name == "clicks":
        if settings.schema is None:
            raise SettingsError("--data clicks needs --schema FILE, which names the label and the columns.")
        return read_schema(settings.schema)
    if settings.schema is not None:
        raise SettingsError(
            f"--schema {settings.schema}: --data {name} has a schema of its own; take --data clicks for another."
        )
    return read_schema(name)


def _check(cache: Cache, schema: Schema, settings: ClickSettings) -> None:
    """Refuse a cache with more bad rows than are allowed today, and one without rows to measure on."""
    if cache.facts["bad_rows"] > schema.bad_rows:
        file, line, reason = cache.facts["bad_rows_listed"][0]
        raise DataError(
            f"{cache.facts['bad_rows']:,} row(s) cannot be read, the first one in {file}, line {line}: {reason}. The "
            f"schema allows bad_rows: {schema.bad_rows}. Mend them, or allow more."
        )
    if not cache.counts[settings.measured_on]:
        raise DataError(
            f"--clicks.measured_on {settings.measured_on}: the log has no such rows; see files and split in the schema."
        )
