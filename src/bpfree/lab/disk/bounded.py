"""Reading files that may be damaged or a stranger's: none takes more memory than its size accounts for.

A file of n bytes may take 4 n bytes and a fixed amount; what declares more is refused before it is made.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bpfree.lab.errors import DataError

FIXED = 2**28
"""Bytes that any file may take, however small it is: 256 MiB."""
_FACTOR = 4
_CHUNK = 2**20
_UNPACKED = 32  # bytes that one byte of a packed file may become; text becomes 3 or 4, a file of one letter 1,030
_COSTS = {b"{": 240, b"[": 90, b",": 64, b":": 64}  # bytes of memory for what such a character of JSON announces


def allowed(size: int) -> int:
    """Return the bytes of memory that a file of so many bytes may take."""
    return _FACTOR * size + FIXED


def parse_json(content: bytes) -> Any:
    """Parse JSON whose values take no more memory than is allowed.

    Raises:
        ValueError: It is no JSON, or holds too many values for its size.
    """
    if sum(cost * content.count(mark) for mark, cost in _COSTS.items()) > allowed(len(content)):
        raise ValueError("it holds more values than any result of its size")
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def contents(path: Path) -> bytes:
    """Read a data file.

    Raises:
        DataError: It is missing, or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> DataError:
    """Return what is said of a file that cannot be read."""
    return DataError(f"{path} cannot be read ({error.strerror}). Check the file and who may read it.")


def pieces(path: Path) -> Iterator[bytes]:
    """Yield a data file's content piece by piece; that of a ``.gz`` file unpacked.

    Raises:
        DataError: It is missing, cannot be read, or is no such ``.gz`` file, see :func:`unpacked`.
    """
    if path.suffix == ".gz":
        yield from _unpacked_pieces(path, None)
        return
    try:
        with path.open("rb") as stream:
            while piece := stream.read(_CHUNK):
                yield piece
    except OSError as error:
        raise unreadable(path, error) from error


def unpacked(path: Path, look: Callable[[bytes], object] = len, limit: int | None = None) -> bytes:
    """Unpack a ``.gz`` file. It is looked through once, piece by piece, before anything of it is kept.

    Args:
        path: The file.
        look: Is shown every piece in the first pass. What it raises ends the reading.
        limit: The most bytes that it may become; by default 32 times its own, and the fixed amount.

    Raises:
        DataError: It is truncated, altered or no such file, or becomes more than that.
    """
    size = 0
    for piece in _unpacked_pieces(path, limit):
        size += len(piece)
        look(piece)
    with gzip.open(path) as stream:
        return stream.read(size)


def _unpacked_pieces(path: Path, limit: int | None) -> Iterator[bytes]:
    try:
        most = _UNPACKED * path.stat().st_size + FIXED if limit is None else limit
        size = 0
        with gzip.open(path) as stream:
            while piece := stream.read(_CHUNK):
                size += len(piece)
                if size > most:
                    raise DataError(
                        f"{path} becomes more than {most:,} bytes, which no such file does. Fetch the original file "
                        "again; a text of your own that is so repetitive can be read unpacked."
                    )
                yield piece
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked ({error}). Fetch the file again.") from error
