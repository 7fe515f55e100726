"""The console that everything in the lab prints to."""

from __future__ import annotations

from rich.console import Console

_PIPE_WIDTH = 160  # a pipe has no width of its own, and rich's 80 would break the table's lines


def make_console() -> Console:
    """Return the console for standard output. Without a terminal it writes plain lines, and no control codes."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=_PIPE_WIDTH)
