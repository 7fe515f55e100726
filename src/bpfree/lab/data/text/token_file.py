"""Tokens in a file: written once, as a whole or not at all, and read a batch at a time."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpfree.lab.disk.checksums import is_whole, sealed
from bpfree.lab.disk.files import replacing

_HEADER = 4096  # bytes of JSON and blanks before the first token
_PIECE = 2**20  # tokens
_DTYPES = ("<u2", "<u4")
_PAGES = 2**16  # bytes that the system maps at the first touch of a row
_MAPPED = 2**26  # bytes of the file that stay mapped at most: they would count as this process's memory


class TokenFile:
    """A file of tokens, all of it mapped into memory and little of it there.

    Args:
        path: The file, which is whole.
        dtype: The kind of its numbers.
        count: The number of tokens.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], count: int) -> None:
        self.path, self.dtype = path, dtype
        with path.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._tokens: NDArray[Any] = np.frombuffer(self._map, dtype, count, offset=_HEADER)
        self._touched = 0

    @classmethod
    def open(cls, path: Path, key: str) -> TokenFile | None:
        """Open a file that :func:`write` has written; None if there is none, or it is damaged or has another key."""
        try:
            with path.open("rb") as stream:
                facts = json.loads(stream.read(_HEADER))
                if not is_whole(facts) or facts["key"] != key or facts["dtype"] not in _DTYPES:
                    return None
                dtype = np.dtype(facts["dtype"])
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            size = path.stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if found != facts["sha256"] or size != _HEADER + facts["count"] * dtype.itemsize:
            return None
        return cls(path, dtype, facts["count"])

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, part: slice) -> NDArray[np.int64]:
        """Return a part of the tokens, int64."""
        return self._tokens[part].astype(np.int64)

    def windows(self, starts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        """Return ``size`` tokens from each of ``starts``, int64 of shape ``(len(starts), size)``."""
        found = np.empty((len(starts), size), np.int64)
        for row, start in zip(found, starts.tolist(), strict=True):
            row[:] = self._tokens[start : start + size]
        self._forget(len(starts) * max(_PAGES, size * self.dtype.itemsize))
        return found

    def pieces(self) -> Iterator[NDArray[np.int64]]:
        """Yield all tokens, a million at a time, int64."""
        for first in range(0, len(self), _PIECE):
            yield self[first : first + _PIECE]
            self._forget(_PIECE * self.dtype.itemsize)

    def _forget(self, touched: int) -> None:
        """Unmap what was read, once it is much: it stays in the system's cache of files."""
        self._touched += touched
        if self._touched > _MAPPED and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0


def write(path: Path, key: str, dtype: np.dtype[Any], arrays: Iterable[NDArray[Any]]) -> None:
    """Write tokens as they come; the file is there when all of them are.

    Args:
        path: The file.
        key: What the tokens are, by which :meth:`TokenFile.open` knows them again.
        dtype: The kind of numbers, little-endian and unsigned, of 2 or 4 bytes.
        arrays: The tokens.

    Raises:
        WriteError: The file could not be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream.seek(_HEADER)
        content, count = hashlib.sha256(), 0
        for array in arrays:
            data = array.astype(dtype, copy=False).tobytes()
            stream.write(data)
            content.update(data)
            count += len(array)
        stream.seek(0)
        facts = {"key": key, "dtype": dtype.str, "count": count, "sha256": content.hexdigest()}
        stream.write(json.dumps(sealed(facts)).ljust(_HEADER - 1).encode() + b"\n")
