"""A line in the terminal while a log is cached."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text

from bpfree.lab.data.clicks.reading import Reader

_EVERY = 10.0  # seconds between two lines where there is no terminal


class Progress:
    """Shows how far caching is; a context manager.

    Args:
        console: Where to; None shows nothing.
        readers: What reads the files of the log.
    """

    def __init__(self, console: Console | None, readers: Sequence[Reader]) -> None:
        self._console, self._sizes = console, [reader.size for reader in readers]
        self._done, self._rows, self._last = 0.0, 0, time.monotonic()
        self._start, self._begun = time.monotonic(), False
        self._live: Live | None = None
        if console is not None and console.is_terminal:
            self._live = Live(Text(""), console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def advance(self, source: int, place: int, rows: int) -> None:
        """Show that a file was read up to a place, which gave so many more rows."""
        self._rows += rows
        size = self._sizes[source]
        self._done = (source + (place / size if size else 0)) / len(self._sizes)
        speed = self._rows / max(1e-9, time.monotonic() - self._start)
        self._say(f"reading the log: {self._done:4.0%}, {self._rows:,} rows, {speed:,.0f} rows/s")

    def column(self, done: int, columns: int) -> None:
        """Show that so many columns have their identifiers."""
        self._say(f"writing identifiers: column {done} of {columns}")

    def _say(self, line: str) -> None:
        if self._live:
            self._live.update(Text(line))
        elif self._console is not None and time.monotonic() - self._last > _EVERY:
            self._last = time.monotonic()
            self._console.print(line)
