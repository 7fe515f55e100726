"""The SHA-256 of large files, computed once: it is known again by a file's place, size and time of change."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

from bpfree.lab.data.download import cache_folder
from bpfree.lab.disk.bounded import unreadable
from bpfree.lab.disk.files import read_json, write_json
from bpfree.lab.errors import DamageError, WriteError

_LARGE = 2**24  # bytes from which on a checksum is kept
_RECENT = 2e9  # nanoseconds in which a file may change again without another time of change


def file_checksum(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        state = path.stat()
        if state.st_size < _LARGE:
            return _computed(path)
        place = os.fsencode(path.resolve())
        facts = {"size": state.st_size, "changed": state.st_mtime_ns, "number": state.st_ino}
        entry = cache_folder() / "clicks" / "checksums" / f"{hashlib.sha256(place).hexdigest()[:32]}.json"
        known = _known(entry)
        if known.items() >= facts.items():
            return str(known["sha256"])
        found = _computed(path)
    except OSError as error:
        raise unreadable(path, error) from error
    if time.time_ns() - state.st_mtime_ns > _RECENT:
        with suppress(WriteError):  # it is computed again, then
            write_json(entry, {**facts, "sha256": found})
    return found


def _known(entry: Path) -> dict[str, object]:
    try:
        return dict(read_json(entry))
    except (DamageError, ValueError, TypeError):
        return {}


def _computed(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
