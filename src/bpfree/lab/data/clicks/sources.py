"""The files of a log: which of a folder's files they are, and which part each is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bpfree.lab.data.clicks.schema import ENDINGS, PARTS, Part, Schema
from bpfree.lab.errors import DataError, SettingsError


@dataclass(frozen=True)
class Source:
    """A file of a log.

    Attributes:
        path: The file.
        name: Its place in the folder of the log.
        part: The part that all its rows are of; None where rows are split.
    """

    path: Path
    name: str
    part: Part | None = None


def find_sources(folder: Path, schema: Schema) -> list[Source]:
    """Return the files of a log, in the order of parts and then of names.

    Args:
        folder: The folder of the log.
        schema: Its schema.

    Raises:
        DataError: There is none, or a file is in two parts, or one that is named is missing.
        SettingsError: The schema has a pattern that is none.
    """
    if isinstance(schema.files, Mapping):
        found = [
            Source(path, _name(path, folder), part)
            for part in PARTS
            if part in schema.files
            for path in _matching(folder, schema.files[part])
        ]
    else:
        patterns = schema.files or tuple(f"**/*{ending}" for ending in ENDINGS[schema.format])
        paths = _matching(folder, patterns, needed=schema.files is not None)
        joined = joined_files(folder, schema)  # which have the endings of the log's files
        found = [Source(path, _name(path, folder)) for path in paths if path not in joined]
    if not found:
        endings = ", ".join(ENDINGS[schema.format])
        raise DataError(
            f"{folder} holds no file of the format {schema.format} ({endings}). Name the folder of the log, or its "
            "files under files in the schema."
        )
    paths = [source.path for source in found]
    for path in paths:
        if paths.count(path) > 1:
            raise DataError(
                f"{path} is in two parts: it would be trained on and measured on. Change files in the schema."
            )
    return found


def joined_files(folder: Path, schema: Schema) -> list[Path]:
    """Return the files of the tables that the log is joined with, in the order of the schema.

    Raises:
        DataError: One is missing.
    """
    return [_matching(folder, [join.file])[0] for join in schema.join]


def _matching(folder: Path, patterns: Sequence[str], *, needed: bool = True) -> list[Path]:
    """Return the files that match, each once; a name that is no pattern may also be that of a packed file."""
    found: list[Path] = []
    for pattern in patterns:
        try:
            paths = [path for path in sorted(folder.glob(pattern)) if path.is_file() and not _hidden(path, folder)]
        except (ValueError, NotImplementedError) as error:
            raise SettingsError(
                f"files in the schema: {pattern!r} is no name or pattern of files in --data-dir ({error})."
            ) from error
        if not paths and (packed := folder / f"{pattern}.gz").is_file():
            paths = [packed]
        if not paths and needed:
            raise DataError(f"{folder / pattern} is missing. Check --data-dir, and files in the schema.")
        found += [path for path in paths if path not in found]
    return found


def _hidden(path: Path, folder: Path) -> bool:
    """Return whether this is no part of the log: Spark writes _SUCCESS and .part-0.crc beside its files."""
    return any(name.startswith((".", "_")) for name in path.relative_to(folder).parts)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
