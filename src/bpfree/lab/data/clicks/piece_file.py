"""A piece of a log in a file: its columns encoded by themselves, so that an interrupted caching finds it done."""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bpfree.lab.data.clicks.encoding import Encoded
from bpfree.lab.disk.checksums import is_whole, sealed, unsealed
from bpfree.lab.errors import WriteError

_MARK = b"bpfree-clicks-piece/2\n"


class PieceFile:
    """A file that :func:`write_piece` has written.

    Args:
        path: The file.
        facts: What its first lines say.
        begin: The byte behind them.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], begin: int) -> None:
        self.path, self.facts, self._begin = path, facts, begin

    @classmethod
    def open(cls, path: Path, *, check: bool = False) -> PieceFile | None:
        """Open a file; None if there is none, or it is not as it was written.

        Args:
            path: The file.
            check: Whether to read all of it: a file that this process wrote needs no check.
        """
        try:
            with path.open("rb") as stream:
                if stream.readline() != _MARK:
                    return None
                facts = json.loads(stream.readline())
                begin = stream.tell()
                content = zlib.crc32(stream.read()) if check else facts["crc"]
            return cls(path, unsealed(facts), begin) if is_whole(facts) and content == facts["crc"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def rows(self) -> int:
        """The number of rows."""
        return int(self.facts["rows"])

    def plain(self, name: str) -> NDArray[Any]:
        """Return a column of numbers that was written as it is, ``(rows,)``."""
        return self._read(self.facts["columns"][name]["codes"])

    def encoded(self, name: str) -> Encoded:
        """Return a column."""
        return Encoded(self.plain(name), self.values(name))

    def values(self, name: str) -> pl.Series:
        """Return the different values of a column."""
        data = self._read(self.facts["columns"][name]["values"])
        return pl.Series(data) if self.is_short(name) else pl.read_ipc_stream(io.BytesIO(data.tobytes())).to_series()

    def n_values(self, name: str) -> int:
        """Return their number."""
        return int(self.facts["columns"][name]["count"])

    def is_short(self, name: str) -> bool:
        """Return whether they are short text, see :mod:`~bpfree.lab.data.clicks.short_text`."""
        return bool(self.facts["columns"][name]["short"])

    def _read(self, place: Sequence[Any]) -> NDArray[Any]:
        offset, dtype, count = place
        return np.fromfile(self.path, dtype, count, offset=self._begin + offset)


def write_piece(
    path: Path, facts: Mapping[str, Any], plain: Mapping[str, NDArray[Any]], columns: Mapping[str, Encoded]
) -> None:
    """Write a piece; the file is there when all of it is.

    Args:
        path: The file.
        facts: What is said of the piece.
        plain: Name -> numbers that are written as they are.
        columns: Name -> an encoded column.

    Raises:
        WriteError: It could not be written.
    """
    blobs, entries, offset = list[bytes](), dict[str, Any](), 0

    def put(array: NDArray[Any]) -> list[Any]:
        nonlocal offset
        blobs.append(array.tobytes())
        begin, offset = offset, offset + len(blobs[-1])
        return [begin, array.dtype.str, len(array)]

    for name, array in plain.items():
        entries[name] = {"codes": put(array)}
    for name, column in columns.items():
        short = column.values.dtype == pl.UInt64
        values = put(column.values.to_numpy() if short else _as_bytes(column.values))
        entries[name] = {"codes": put(column.codes), "values": values, "count": len(column.values), "short": short}
    crc = 0
    for blob in blobs:
        crc = zlib.crc32(blob, crc)
    head = json.dumps(sealed({**facts, "columns": entries, "crc": crc})).encode() + b"\n"
    temporary = path.with_suffix(".new")
    try:
        # No waiting for the disk: a machine that loses power leaves files whose checksum is wrong.
        with temporary.open("wb") as stream_:
            stream_.writelines([_MARK, head, *blobs])
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise WriteError(f"{path} could not be written ({reason}).") from error


def _as_bytes(values: pl.Series) -> NDArray[np.uint8]:
    stream = io.BytesIO()
    pl.DataFrame({"v": values}).write_ipc_stream(stream)
    return np.frombuffer(stream.getbuffer(), np.uint8)
