"""One part of a text, for training or for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class Part(Protocol):
    """One part of a text."""

    @property
    def name(self) -> str:
        """Its name in records, without a folder."""

    @property
    def checksum(self) -> str:
        """The SHA-256 of its content."""

    def lines(self) -> Iterator[str]:
        """Yield its lines, see :func:`bpfree.lab.data.text.reading.lines`."""

    def __str__(self) -> str:
        """Return its place, for errors."""
