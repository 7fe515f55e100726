"""How long a block takes, and how much memory."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from common import results


def resident() -> int:
    """The bytes of this process that are in memory now, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def watched(row: results.Row) -> Iterator[None]:
    """Put the seconds of a block into a row, and by how much the process grew at most in it (``resident_growth``)."""
    before, most, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], resident() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    start, cpu = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        row["seconds"] = time.perf_counter() - start
        row["cpu_seconds"] = time.process_time() - cpu
        done.set()
        thread.join()
        row["resident_growth"] = max(most[0], resident() - before)
