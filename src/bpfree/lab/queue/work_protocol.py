"""One entry of the queue: a run, or a measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from bpfree.lab.display.terminal import Display
from bpfree.lab.running.loggers import USUAL


class Work(Protocol):
    """A run of a cell."""

    @property
    def label(self) -> str:
        """Its name while it runs."""

    @property
    def seed(self) -> int:
        """The seed."""

    @property
    def key(self) -> str:
        """A hash of all that is asked for: what has the same key has the same result at one state of the code."""

    @property
    def metric(self) -> str | None:
        """The number that a column shows unless it names another."""

    @property
    def measures(self) -> tuple[str, ...]:
        """Others that only runs of this task have."""

    def perform(self, folder: Path, data_dir: str | None, display: Display, logger: str = USUAL) -> dict[str, Any]:
        """Do it, and return the record."""
