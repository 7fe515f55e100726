"""Reading Parquet files with errors that name the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import polars as pl

from bpfree.lab.errors import DataError

Result = TypeVar("Result")


def columns(path: Path) -> list[str]:
    """Return the names of a file's columns.

    Raises:
        DataError: It is none, or damaged.
    """
    return _read(path, lambda: list(pl.read_parquet_schema(path)))


def count(path: Path) -> int:
    """Return the number of rows of a file.

    Raises:
        DataError: It is none, or damaged.
    """
    return _read(path, lambda: int(pl.scan_parquet(path).select(pl.len()).collect().item()))


def rows(path: Path, names: Sequence[str], first: int, number: int) -> pl.DataFrame:
    """Return some columns of some rows of a file.

    Raises:
        DataError: It is none, or damaged.
    """
    return _read(path, lambda: pl.scan_parquet(path).select(names).slice(first, number).collect())


def _read(path: Path, read: Callable[[], Result]) -> Result:
    try:
        return read()
    except (OSError, pl.exceptions.PolarsError) as error:
        said = str(error).splitlines()[0]
        raise DataError(
            f"{path} cannot be read as Parquet ({said}). Is it cut short? Write or fetch it again."
        ) from error
