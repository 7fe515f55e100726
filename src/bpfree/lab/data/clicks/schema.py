"""The schema of a log: its columns, which file or row is for training, and what is done with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from bpfree.lab.errors import SettingsError

Format: TypeAlias = Literal["csv", "tsv", "parquet", "atomic"]
Part: TypeAlias = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
ENDINGS: dict[str, tuple[str, ...]] = {
    "csv": (".csv", ".csv.gz"),
    "tsv": (".tsv", ".tsv.gz", ".txt", ".txt.gz"),
    "parquet": (".parquet",),
    "atomic": (".inter",),
}
"""Format -> the endings of its files where a schema names no files."""
_OF_NO_ROW = ("identifiers", "bad_rows")  # what changes no row of a cache, where there is one
RANDOM, AS_WRITTEN = "random", "as written"
"""The orders of a :class:`Split` that are no column."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """The column that says which rows are clicks.

    Args:
        column: The column; it holds 0 and 1.
        threshold: Where it holds numbers, such as ratings: from this one on they are clicks.
    """

    column: str
    threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class Split:
    """The division of the rows into the parts train, validation and test, where the files do not say so.

    Args:
        fractions: The fraction of each part.
        order: The first rows are for training, in this order: ``"random"``, ``"as written"`` in the files, or that of a
            column of numbers such as a time, of which rows with the same number are never in two parts.
        seed: Which random order.
    """

    fractions: tuple[float, ...] = (0.8, 0.1, 0.1)
    order: str = RANDOM
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.fractions) != len(PARTS) or not all(0 <= value <= 1 for value in self.fractions):
            raise SettingsError("split: fractions must be three numbers from 0 to 1: of train, validation and test.")
        if abs(sum(self.fractions) - 1) > 1e-9 or not self.fractions[0]:
            raise SettingsError(f"split: fractions {list(self.fractions)} must sum to 1, and the first be above 0.")


@dataclass(frozen=True, kw_only=True)
class Join:
    """A small table with more columns, such as the properties of users, of which each row of the log takes one row.

    Args:
        file: The file in the folder of the log, of the same format.
        key: The column that both have.
    """

    file: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The schema of a log.

    Args:
        label: What counts as a click.
        format: How the files are written: ``"csv"``, ``"tsv"``, ``"parquet"``, or ``"atomic"``, RecBole's files with
            tabs between fields and a first line of ``name:type``.
        columns: The names of the columns of files without a first line that holds them.
        numeric: The columns of numbers: each becomes bins, ``v - 2`` up to 2 and ``floor(ln(v)^2)`` above.
        categorical: The columns whose values are names, whatever they look like.
        identifiers: The columns that ``bpfree predict`` writes beside its probabilities.
        files: The files in the folder; or those of each part; patterns such as ``day_*.csv`` name several. By default
            all that end as the format's files do.
        join: Tables with more columns.
        missing: What stands where a value is missing, beside nothing.
        quotes: Whether ``"`` quotes fields of text files; by default in CSV.
        min_count: Values that are seen fewer times in training share one identifier.
        bad_rows: How many rows that cannot be read are skipped; more are an error.
        split: How the rows become parts, where the files do not say so.
    """

    label: Label
    format: Format = "csv"
    columns: tuple[str, ...] | None = None
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    identifiers: tuple[str, ...] = ()
    files: tuple[str, ...] | Mapping[Part, Sequence[str]] | None = None
    join: tuple[Join, ...] = ()
    missing: tuple[str, ...] = ()
    quotes: bool | None = None
    min_count: int = 10
    bad_rows: int = 0
    split: Split = field(default_factory=Split)

    def __post_init__(self) -> None:
        named = [self.label.column, *self.fields]
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise SettingsError(f"column {twice[0]!r} is used twice; it can be the label, numeric or categorical.")
        if not self.fields:
            raise SettingsError("numeric and categorical name no column: a model needs one at least.")
        for name in set(self.identifiers) & set(self.numeric):
            raise SettingsError(f"identifiers: {name!r} is numeric; identifiers are names, written as they stand.")
        for join in self.join:
            if join.key in (*self.numeric, self.label.column):
                raise SettingsError(f"join: {join.key!r} is a name, by which rows are found; make it categorical.")
        if self.min_count < 1 or self.bad_rows < 0:
            raise SettingsError("min_count is a number from 1 on, bad_rows one from 0 on.")
        self._check_format()
        self._check_files()

    def _check_format(self) -> None:
        if self.format not in get_args(Format):
            raise SettingsError(f"format {self.format!r} is none of {', '.join(get_args(Format))}.")
        if self.columns is not None and self.format in ("parquet", "atomic"):
            raise SettingsError(f"columns: files of the format {self.format} name theirs; leave it out.")
        if self.format == "parquet" and (self.quotes or self.missing):
            raise SettingsError("quotes and missing: Parquet has no text around its values; leave them out.")
        for name in self.columns or ():
            if (self.columns or ()).count(name) > 1:
                raise SettingsError(f"columns: {name!r} is there twice.")

    def _check_files(self) -> None:
        if isinstance(self.files, Mapping):
            if self.split != Split():
                raise SettingsError("split: files says already which rows are in which part; leave one of the two out.")
            if "train" not in self.files or len(self.files) < 2:
                raise SettingsError("files: name those of train, and of validation or test or both.")

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that models get, in their order: numeric ones first."""
        return (*self.numeric, *self.categorical)

    @property
    def quoted(self) -> bool:
        """True if ``"`` quotes fields."""
        return self.format == "csv" if self.quotes is None else self.quotes

    @property
    def separator(self) -> str:
        """The letter between two fields of a text file."""
        return "," if self.format == "csv" else "\t"

    @property
    def is_drawn(self) -> bool:
        """True if chance decides the part of each row."""
        return self.split.order == RANDOM and not isinstance(self.files, Mapping)

    @property
    def order_column(self) -> str | None:
        """The column by which rows are split, if there is one."""
        return None if self.split.order in (RANDOM, AS_WRITTEN) else self.split.order

    def describe(self) -> dict[str, Any]:
        """Return the schema as plain values: caches are known by it."""
        found = asdict(self)
        return {name: value for name, value in found.items() if name not in _OF_NO_ROW}
