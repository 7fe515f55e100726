"""Processes that cache a log, slowly, to be killed meanwhile."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from support.copies import copies


def _cache(folder: Path, schema: str, cache: Path, pause: float, piece: int, begins: Connection) -> None:
    from bpfree.lab.data.clicks import ClickSettings, columns, load_clicks, pieces, text_rows

    os.environ["XDG_CACHE_HOME"] = str(cache)
    text_rows.PIECE = piece
    for module, name in ((pieces, "write_piece"), (columns, "write_numbers"), (os, "replace")):
        setattr(module, name, _slowly(getattr(module, name), pause))
    begins.send(True)  # importing takes seconds, in which nothing is written
    load_clicks(folder, ClickSettings(schema=schema))


def _slowly(call: Any, pause: float) -> Any:
    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(pause)
        return call(*arguments, **options)

    return slow


def run(folder: Path, schema: str, cache: Path, seconds: float | None, *, pause: float = 0, piece: int = 2000) -> bool:
    """Cache a log in a process of its own, in pieces of so many bytes.

    It is killed some seconds after it has begun. Return whether it ended before.
    """
    context = copies()
    begun, begins = context.Pipe(duplex=False)
    process = context.Process(target=_cache, args=(folder, schema, cache, pause, piece, begins))
    process.start()
    begins.close()
    assert begun.recv()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        return False
    assert process.exitcode == 0
    return True


def files(cache: Path) -> dict[str, bytes]:
    """Every file of the caches in a folder, but for locks and known checksums."""
    place = cache / "bpfree" / "clicks"
    return {
        path.relative_to(place).as_posix(): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.suffix != ".lock" and "checksums" not in path.parts
    }
