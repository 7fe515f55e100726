"""Making the cache of a log: each piece of the log becomes a file, then each column of all pieces one.

The log is read once. In a piece the different values of each column are numbered: by hash tables where all fields of
the column are short (``short_fields``), else behind polars' parser. Counts and identifiers are then found from the
pieces' different values: two or three a row of Criteo's, and not 40. To read the log a second time, with the
vocabularies known, would be to parse it again and to look up every value.

What a killed process leaves is taken up by the next one: pieces and columns that are done are not made again. An
undisturbed caching makes the same cache, byte for byte.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bpfree.lab.data.clicks.bad_rows import BadLines
from bpfree.lab.data.clicks.cache import (
    FORMAT,
    LABELS,
    MANIFEST,
    Cache,
    ids_name,
    remove,
    vocabulary_name,
)
from bpfree.lab.data.clicks.columns import learn, write_ids, write_numbers
from bpfree.lab.data.clicks.encoding import dtype_for
from bpfree.lab.data.clicks.joining import read_side_table
from bpfree.lab.data.clicks.kinds import LABEL
from bpfree.lab.data.clicks.known_checksums import file_checksum
from bpfree.lab.data.clicks.parts import Parts
from bpfree.lab.data.clicks.piece_file import PieceFile
from bpfree.lab.data.clicks.pieces import make_pieces, threads
from bpfree.lab.data.clicks.progress import Progress
from bpfree.lab.data.clicks.reading import Reader
from bpfree.lab.data.clicks.schema import PARTS, Part, Schema
from bpfree.lab.data.clicks.sources import Source
from bpfree.lab.data.clicks.vocabulary import Vocabulary
from bpfree.lab.disk.files import make_folder, write_json
from bpfree.lab.errors import DataError, WriteError

try:
    import fcntl
except ImportError:  # not a POSIX system: two processes that cache the same log there would write the same files
    fcntl = None  # type: ignore[assignment]

_LARGE = 2**21  # different values of pieces from which on a column is made by itself, so that memory holds one of them
_PIECES = "pieces"


def cached(
    folder: Path,
    schema: Schema,
    sources: Sequence[Source],
    joined: Sequence[Path],
    checksums: Mapping[str, str],
    console: Console | None,
) -> tuple[Cache, bool]:
    """Return the cache of a log, and whether it was made just now.

    Args:
        folder: Its folder, see :func:`bpfree.lab.data.clicks.cache.place`.
        schema: The schema.
        sources: The files of the log.
        joined: The tables that it is joined with.
        checksums: What both contain.
        console: Where progress is shown; None for nowhere.

    Raises:
        DataError: The log has no rows to train on, lacks a column, or has more bad rows than the schema allows.
        WriteError: The cache could not be written.
    """
    if found := Cache.open(folder):
        return found, False
    try:
        make_folder(folder.parent)
        with _locked(folder.with_suffix(".lock"), console):
            if found := Cache.open(folder):  # another process has made it
                return found, False
            remove(folder)
            tables = tuple(read_side_table(path, join, schema) for path, join in zip(joined, schema.join, strict=True))
            readers = [Reader(source.path, schema, tables) for source in sources]
            with Progress(console, readers) as progress:
                _make(folder, schema, sources, readers, checksums, progress)
    except WriteError as error:
        raise WriteError(
            f"{error} The cache of a log takes about as much space as the log, and as much again while it is made. Its "
            "folder is $XDG_CACHE_HOME/bpfree/clicks; what is done is kept, and repeating the command goes on with it."
        ) from error
    if found := Cache.open(folder):
        return found, True
    raise WriteError(f"{folder} is not as it was written a moment ago: the disk loses data, or somebody changes it.")


@contextmanager
def _locked(path: Path, console: Console | None) -> Iterator[None]:
    """Wait until no other process makes this cache, as the processes of one run would do side by side."""
    if fcntl is None:
        yield
        return
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if console:
                console.print("another process reads this log; waiting for it")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _make(
    folder: Path,
    schema: Schema,
    sources: Sequence[Source],
    readers: Sequence[Reader],
    checksums: Mapping[str, str],
    progress: Progress,
) -> None:
    making = folder.with_suffix(".making")
    if not (making / MANIFEST).is_file():
        make_folder(making / _PIECES)
        pieces, bad = make_pieces(making / _PIECES, sources, readers, progress)
        parts = Parts(schema, sources, pieces)
        counts = parts.counts()
        _check(counts, sources, bad)
        clicks = _write_labels(making / LABELS, pieces, parts, counts)
        fields = _write_fields(making, schema, pieces, parts, counts, progress)
        names = [
            LABELS,
            *(name for number in range(len(fields)) for name in (ids_name(number), vocabulary_name(number))),
        ]
        facts: dict[str, Any] = {"format": FORMAT, "key": folder.name, "schema": schema.describe()}
        facts |= {"sources": dict(checksums), "rows": counts, "clicks": clicks, "fields": fields}
        facts |= {"bad_rows": bad.count, "bad_rows_listed": [list(entry) for entry in bad.listed]}
        write_json(making / MANIFEST, {**facts, "files": {name: file_checksum(making / name) for name in names}})
    shutil.rmtree(making / _PIECES, ignore_errors=True)
    try:
        os.replace(making, folder)
    except OSError as error:
        raise WriteError(f"{folder} could not be written ({error.strerror}).") from error


def _check(counts: Mapping[Part, int], sources: Sequence[Source], bad: BadLines) -> None:
    if not sum(counts.values()):
        which = str(sources[0].path) if len(sources) == 1 else f"{sources[0].path} and {len(sources) - 1} more"
        left_out = f" but {bad.count:,} that cannot be read" if bad.count else ""
        raise DataError(f"{which}: there is no row{left_out}. Is the file empty, or its copy not finished?")
    if not counts["train"]:
        raise DataError("there is no row to train on: see files and split in the schema.")


def _write_labels(path: Path, pieces: Sequence[PieceFile], parts: Parts, counts: dict[Part, int]) -> dict[Part, int]:
    """Write the labels; return the number of clicks of each part."""
    rows = ((number, piece.plain(LABEL)) for number, piece in enumerate(pieces))
    write_numbers(path, np.dtype("u1"), rows, parts.rows, counts)
    clicks = dict.fromkeys(PARTS, 0)
    for number, piece in enumerate(pieces):
        labels = piece.plain(LABEL)
        for part, places in parts.rows(number).items():
            clicks[part] += int(labels[places].sum())
    return clicks


def _write_fields(
    folder: Path,
    schema: Schema,
    pieces: Sequence[PieceFile],
    parts: Parts,
    counts: dict[Part, int],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Write the vocabularies and identifiers of all columns; return what the manifest says of them."""
    sizes = [sum(piece.n_values(name) for piece in pieces) for name in schema.fields]

    def make(number: int) -> dict[str, Any]:
        name, ids, path = schema.fields[number], folder / ids_name(number), folder / vocabulary_name(number)
        # Each of the two is written whole or not at all, the vocabulary first.
        if path.is_file() and ids.is_file():
            vocabulary = Vocabulary.load(path)
        else:
            vocabulary = learn(name, pieces, parts, schema.min_count)
            vocabulary.save(path)
            write_ids(ids, name, pieces, parts, counts, vocabulary)
        return {"name": name, "size": vocabulary.size, "dtype": dtype_for(vocabulary.size).str}

    large = [number for number, size in enumerate(sizes) if size > _LARGE]
    found = {number: make(number) for number in large}
    with ThreadPoolExecutor(threads(), "clicks") as pool:
        small = [number for number in range(len(sizes)) if number not in found]
        for number, entry in zip(small, pool.map(make, small), strict=True):
            found[number] = entry
            progress.column(len(found), len(sizes))
    return [found[number] for number in range(len(sizes))]
