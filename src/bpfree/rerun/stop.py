"""Ending a forward pass early."""

from __future__ import annotations

from typing import Any


class StopForward(Exception):  # noqa: N818 - not an error: what would follow need not run
    """Raised in a hook to end a forward pass there, and caught by whoever began it.

    Attributes:
        output: What the hook was given.
    """

    def __init__(self, output: Any = None) -> None:
        self.output = output
