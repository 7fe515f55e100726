"""The exception that ends a forward pass early."""

from __future__ import annotations

from typing import Any


class StopForward(Exception):  # noqa: N818 - not an error: the rest of the pass is not needed
    """Raised in a hook to end a forward pass there; the code that began the pass catches it.

    Attributes:
        output: The output that the hook was given.
    """

    def __init__(self, output: Any = None) -> None:
        self.output = output
