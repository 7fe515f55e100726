"""Temporary files and folders: they go with their process, or are swept by the next one that comes by."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing is locked there, and nothing is swept
    fcntl = None  # type: ignore[assignment]

_BEGINNING, _END = ".bpfree-", ".part"
_PATTERN = f"{_BEGINNING}*{_END}"


@contextmanager
def temporary_file(folder: Path) -> Iterator[Path]:
    """Make an empty file in ``folder`` that is gone at the end, unless it was moved.

    Its process holds a lock on it. A file that nobody holds was left by a process that was killed: see :func:`sweep`.
    """
    handle, path = _locked(lambda: tempfile.mkstemp(dir=folder, prefix=_BEGINNING, suffix=_END))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        _close(handle)


@contextmanager
def temporary_folder(folder: Path | None = None) -> Iterator[Path]:
    """Make a folder in ``folder``, or where the system keeps such folders; it is gone at the end, unless moved."""
    place = folder or Path(tempfile.gettempdir())
    sweep(place)
    handle, path = _locked(lambda: _folder(place))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        _close(handle)


def sweep(folder: Path, *, below: bool = False) -> None:
    """Delete what killed processes have left in ``folder``; with ``below`` in all folders below it, too."""
    if fcntl is None:
        return
    for path in list(folder.rglob(_PATTERN) if below else folder.glob(_PATTERN)):
        # Another process may sweep it at the same moment, or it may be another user's.
        with suppress(OSError):
            _delete_unless_held(path)


def _delete_unless_held(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        os.close(handle)


def _folder(place: Path) -> tuple[int | None, str]:
    while True:
        path = tempfile.mkdtemp(dir=place, prefix=_BEGINNING, suffix=_END)
        if fcntl is None:
            return None, path
        with suppress(FileNotFoundError):  # between making and opening a sweep may have taken it for a leftover
            return os.open(path, os.O_RDONLY), path


def _locked(make: Callable[[], tuple[int | None, str]]) -> tuple[int | None, Path]:
    """Make a file or folder and hold a lock on it, as far as the file system knows locks."""
    while True:
        handle, path = make()
        if fcntl is None:
            _close(handle)  # an open file could not be moved there
            return None, Path(path)
        with suppress(OSError):
            fcntl.flock(cast(int, handle), fcntl.LOCK_EX)
        if Path(path).exists():  # between making and locking a sweep may have taken it for a leftover
            return handle, Path(path)
        _close(handle)


def _close(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)
