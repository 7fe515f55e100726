"""Plain text tables, and how they name modules."""

from __future__ import annotations

from collections.abc import Container, Sequence

from torch import nn


def tabulate(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table with a rule under its header; none for an empty header."""
    if not header:
        return []
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    cells = [header, ["-" * width for width in widths], *rows]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def others(model: nn.Module, served: Container[str]) -> list[str]:
    """The modules with parameters of their own whose names are not among ``served``, as ``"norm (BatchNorm1d)"``."""
    return [
        f"{name or '(model)'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if name not in served and next(module.parameters(recurse=False), None) is not None
    ]
