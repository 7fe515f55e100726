"""The rows of a log that cannot be read: they are counted, named with file and line, and left out up to a limit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from bpfree.lab.errors import DataError

LISTED = 1000
"""Bad rows that are named; more are counted."""


@dataclass
class BadRows:
    """The rows of a piece that cannot be read.

    Attributes:
        reasons: Row, counted from 0 in the piece -> what is wrong with it.
    """

    reasons: dict[int, str] = field(default_factory=dict)

    def add(self, row: int, reason: str) -> None:
        """Note a row; its first reason is kept."""
        self.reasons.setdefault(int(row), reason)


@dataclass
class BadLines:
    """The rows of a log that cannot be read.

    Attributes:
        count: Their number.
        listed: File, line (from 1 on; the row of a Parquet file) and reason of the first ones.
    """

    count: int = 0
    listed: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, file: str, before: int, lines: Iterable[tuple[int, str]], count: int) -> None:
        """Add those of a piece.

        Args:
            file: The file's name.
            before: The number of lines before the piece.
            lines: Line, counted from 0 in the piece, and reason of the first ones.
            count: Their number.
        """
        self.count += count
        named = [(file, before + line + 1, reason) for line, reason in lines]
        self.listed += named[: LISTED - len(self.listed)]

    def check(self, limit: int) -> None:
        """Refuse more than ``limit``.

        Raises:
            DataError: There are more; the first ones are named.
        """
        if self.count <= limit:
            return
        named = "\n".join(f"  {file}, line {line}: {reason}" for file, line, reason in self.listed[:5])
        allowed = f"bad_rows: {limit} of the schema lets {limit or 'none'} be left out"
        raise DataError(
            f"{self.count:,} row(s) so far cannot be read, and {allowed}:\n{named}\nMend them, or allow more there."
        )
