"""A part of a batch: some of its samples, each with all of its tokens or positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from bpfree.axes.sites import ErrorRows, Site
from bpfree.errors import OptionError
from bpfree.rerun.arguments import Call

Rows: TypeAlias = "int | float"
"""The samples of an estimating pass: their number (int), or their fraction of the batch (float)."""


def check_rows(rows: Rows) -> None:
    """Raise OptionError for what is neither a number of samples nor a fraction."""
    # Callers are not type-checked.
    number = isinstance(rows, int) and not isinstance(rows, bool) and rows >= 1
    if not number and not (isinstance(rows, float) and 0 < rows <= 1):
        raise OptionError(
            f"rows={rows!r}: the samples of an estimating pass, as a fraction of the batch (a float above 0, at most "
            "1.0) or as their number (an int, at least 1)."
        )


def are_all(rows: Rows) -> bool:
    """Return whether ``rows`` are all samples of every batch: the fraction 1.0, and not the number 1."""
    return isinstance(rows, float) and rows == 1.0


@dataclass(frozen=True)
class SamplePart:
    """Some samples of a batch.

    Attributes:
        numbers: Their numbers, in order, shape ``(k,)``.
        of: N, the number of samples in the batch.
    """

    numbers: Tensor
    of: int

    @classmethod
    def draw(cls, rows: Rows, of: int, seed: int) -> SamplePart | None:
        """Draw ``rows`` of ``of`` samples; None if these are all of them."""
        count = min(rows, of) if isinstance(rows, int) else max(1, round(rows * of))
        if count >= of:
            return None
        drawn = torch.randperm(of, generator=torch.Generator().manual_seed(seed))[:count]
        return cls(drawn.sort().values, of)

    def of_call(self, call: Call) -> Call:
        """Return the arguments of a pass for these samples alone.

        Of every tensor that has N entries along its first axis, or along one other axis alone, these are taken; other
        arguments stay as they are. Objects are not looked into.
        """
        args, kwargs = call
        chosen: tuple[tuple[Any, ...], dict[str, Any]] = tree_map(self._of_argument, (args, dict(kwargs)))
        return chosen

    def _of_argument(self, entry: Any) -> Any:
        if not isinstance(entry, Tensor) or not entry.dim():
            return entry
        fitting = [axis for axis, size in enumerate(entry.shape) if size == self.of]
        if not fitting or (fitting[0] and len(fitting) > 1):
            return entry
        return self.along(entry.detach(), fitting[0])

    def of_output(self, output: Tensor) -> Tensor | None:
        """Return a layer's output for these samples, in its memory format; None if its first axis is another."""
        if output.dim() < 2 or output.shape[0] != self.of:
            return None
        found = torch.empty_like(output[: len(self.numbers)])
        return torch.index_select(output, 0, self.numbers.to(output.device), out=found)

    def along(self, tensor: Tensor, axis: int = 0) -> Tensor:
        """Return the entries of these samples along an axis of N."""
        return tensor.index_select(axis, self.numbers.to(tensor.device))

    def of_rows(self, rows: Tensor) -> Tensor:
        """Return the rows of these samples, of ``(N * tokens, n)``."""
        grid = rows.view(self.of, -1, rows.shape[1])
        return self.along(grid).view(-1, rows.shape[1])

    def spread(self, rows: Tensor) -> Tensor:
        """Return rows of these samples among rows of zeros for the other samples, the transpose of :meth:`of_rows`."""
        grid = rows.view(len(self.numbers), -1, rows.shape[1])
        found = grid.new_zeros(self.of, *grid.shape[1:])
        return found.index_copy_(0, self.numbers.to(rows.device), grid).view(-1, rows.shape[1])

    def of_error(self, rows: ErrorRows) -> ErrorRows:
        """Return the rows of an error in a pass of these samples."""
        return ErrorRows((len(self.numbers), *rows.shape[1:]), rows.axes)

    def of_sites(self, sites: Sequence[Site]) -> list[Site]:
        """Return the sites of a pass of these samples."""
        return [self._of_site(site) for site in sites]

    def _of_site(self, site: Site) -> Site:
        # Kept with the site, as its cached properties are: every pass has as many samples.
        count, found = self.numbers.shape[0], vars(site).get("_of_part")
        if found is None or found.batch[0] != count:
            found = replace(site, batch=(count, *site.batch[1:]), error=self.of_error(site.error))
            vars(site)["_of_part"] = found
        of_part: Site = found
        return of_part
