"""A part of a batch: some of its samples, each with all of its tokens or positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

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


def first_size(call: Call) -> int | None:
    """Return the size of the first argument along its first axis; None without such an argument."""
    return next((len(tensor) for tensor in _tensors(call)), None)


def samples_of(call: Call, counts: Set[int]) -> int | None:
    """Return the number of samples of a pass on ``call``; None if no part of them would be the same for all errors.

    Args:
        call: The model's arguments.
        counts: The sizes of its errors along their samples' axis. A model may lay out the positions of its samples
            along that axis (tokens, points on a ray): then it is a multiple of their number.
    """
    same = next(iter(counts)) if len(counts) == 1 else None
    if same is not None and any(same in tensor.shape for tensor in _tensors(call)):
        return same
    first = first_size(call)
    return first if first and not any(count % first for count in counts) else same


def _tensors(call: Call) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(call) if isinstance(leaf, Tensor) and leaf.dim())


@dataclass(frozen=True)
class SamplePart:
    """Some samples of a batch.

    A tensor of the model's inside may have ``m * of`` entries along its samples' axis: each sample has m of them, one
    after the other.

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
        if output.dim() < 2 or not self.fits(output.shape[0]):
            return None
        found = torch.empty_like(output[: self._count(output.shape[0])])
        return torch.index_select(output, 0, self._entries(output, 0), out=found)

    def fits(self, size: int) -> bool:
        """Return whether an axis of this size may be that of the samples."""
        return size > 0 and size % self.of == 0

    def along(self, tensor: Tensor, axis: int = 0) -> Tensor:
        """Return the entries of these samples along an axis."""
        return tensor.index_select(axis, self._entries(tensor, axis))

    def _count(self, size: int) -> int:
        """Return how many of the entries along an axis of this size are these samples'."""
        return size // self.of * len(self.numbers)

    def _entries(self, tensor: Tensor, axis: int) -> Tensor:
        each = tensor.shape[axis] // self.of
        if each == 1:
            return self.numbers.to(tensor.device)
        return (self.numbers[:, None] * each + torch.arange(each)).flatten().to(tensor.device)

    def of_rows(self, rows: Tensor) -> Tensor:
        """Return the rows of these samples, of ``(N * tokens, n)``."""
        return self.along(rows.view(self.of, -1, rows.shape[1])).view(-1, rows.shape[1])

    def spread(self, rows: Tensor) -> Tensor:
        """Return rows of these samples among rows of zeros for the other samples, the transpose of :meth:`of_rows`."""
        grid = rows.view(len(self.numbers), -1, rows.shape[1])
        found = grid.new_zeros(self.of, *grid.shape[1:])
        return found.index_copy_(0, self.numbers.to(rows.device), grid).view(-1, rows.shape[1])

    def of_error(self, rows: ErrorRows) -> ErrorRows:
        """Return the rows of an error in a pass of these samples."""
        return ErrorRows((self._count(rows.shape[0]), *rows.shape[1:]), rows.axes)

    def of_sites(self, sites: Sequence[Site]) -> list[Site]:
        """Return the sites of a pass of these samples."""
        return [self._of_site(site) for site in sites]

    def _of_site(self, site: Site) -> Site:
        # Kept with the site, as its cached properties are: every pass has as many samples.
        count, found = self._count(site.batch[0]), vars(site).get("_of_part")
        if found is None or found.batch[0] != count:
            found = replace(site, batch=(count, *site.batch[1:]), error=self.of_error(site.error))
            vars(site)["_of_part"] = found
        of_part: Site = found
        return of_part
