"""A place that feedback reaches: it says which axes of a tap's output are rows, and which are features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class ErrorRows:
    """The axes of the error that number its rows.

    Attributes:
        shape: The sizes of these axes, the samples first: ``(N,)`` or, for sequences, ``(N, T)``.
        axes: The numbers of these axes in the error.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def features(self, error: Sequence[int]) -> int:
        """Return c, the numbers of one row, for the shape of an error."""
        return product(size for axis, size in enumerate(error) if axis not in self.axes)

    def of(self, error: Tensor, c: int) -> Tensor:
        """Return a tensor of the error's shape as rows ``(prod(shape), c)``."""
        if self.axes == (0,) and error.dim() == 2:  # they are its rows
            return error
        return leading(error, self.axes).reshape(-1, c)


@dataclass(frozen=True)
class Pairing:
    """Assigns rows of the error to the rows of a tap that has fewer rows.

    A tap without an axis of the error (a conditioning vector beside tokens, the tokens of an encoder of another length)
    gets the *sum* over that axis, which is the derivative of a loss with respect to a value that all tokens share. A
    tap that is called once for each step of a loop over time gets the error of that step.

    Attributes:
        error: The sizes of the error's row axes.
        kept: The number of these axes, from the first, that the tap has too.
        step: The step along the second row axis that this call of the tap belongs to; None if there are no steps.
    """

    error: tuple[int, ...]
    kept: int
    step: int | None = None

    @property
    def rows(self) -> int:
        """The number of the error's rows that reach the tap."""
        every = product(self.error)
        return every if self.step is None else every // self.error[1]

    def gather(self, rows: Tensor) -> Tensor:
        """Return, for each row of the tap, the sum of its rows ``(R, c)`` of an error, or of a tensor of that shape."""
        grid = rows.view(*self.error, -1)
        if self.step is not None:
            grid = grid.select(1, self.step)
        return grid.reshape(product(self.error[: self.kept]), -1, rows.shape[1]).sum(1)

    def scatter(self, rows: Tensor) -> Tensor:
        """Return the transpose of :meth:`gather`: a tap's rows as the rows ``(R, c)`` of an error."""
        c = rows.shape[1]
        grid = rows.view(*self.error[: self.kept], *(1,) * (len(self.error) - self.kept), c)
        if self.step is None:
            return grid.expand(*self.error, c).reshape(-1, c)
        found = rows.new_zeros(*self.error, c)
        found[:, self.step] = grid.squeeze(1)
        return found.view(-1, c)


@dataclass(frozen=True)
class Site:
    """One place that feedback reaches in one forward pass.

    Attributes:
        name: The tap module's name in the model, with ``#2``, ``#3``, ... from its second call on.
        module: The tap module's name alone: calls of one module have one feedback.
        batch: The sizes of the axes that it shares with the error, in the error's order: ``(N,)`` or, for
            sequences, ``(N, T)``.
        features: The sizes of the other axes: n_l numbers for each of the ``prod(batch)`` rows.
        error: The rows of the error.
        axes: The numbers of the ``batch`` axes in the tap's output.
        channel: Which of ``features`` is the channels; the others are positions.
        positions_share: True if one row of B serves all positions, however many there are.
        step: The step of this call, for a tap inside a loop over time that is called once for each step of the error.
    """

    name: str
    module: str
    batch: tuple[int, ...]
    features: tuple[int, ...]
    error: ErrorRows
    axes: tuple[int, ...] = (0,)
    channel: int = 0
    positions_share: bool = False
    step: int | None = None

    @property
    def width(self) -> int:
        """n_l, the number of features of one row."""
        return product(self.features)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return product(self.batch)

    @property
    def pairing(self) -> Pairing | None:
        """The assignment of the error's rows to the tap's rows; None if they are the same."""
        if self.batch == self.error.shape:
            return None
        return Pairing(self.error.shape, len(self.batch), self.step)

    @property
    def arrangement(self) -> Arrangement:
        """The arrangement that turns rows of features into a tensor of the tap's shape."""
        return Arrangement((*self.batch, *self.features), self.axes)

    def rows_of(self, output: Tensor) -> Tensor:
        """Return the tap's output as rows ``(prod(batch), n_l)``."""
        return leading(output, self.axes).reshape(self.rows, self.width)


class Arrangement(NamedTuple):  # compared in every pass, and a tuple is quicker at it
    """Turns rows of features into a tensor of a tap's shape.

    Attributes:
        shape: The rows' sizes and the features'.
        axes: The axes of the rows in the tensor.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def __call__(self, rows: Tensor) -> Tensor:
        """Return rows ``(prod(batch), n_l)`` as a tensor of that shape."""
        grid = rows if rows.shape == self.shape else rows.view(self.shape)
        return grid if self.leads else grid.movedim(tuple(range(len(self.axes))), self.axes)

    @property
    def leads(self) -> bool:
        """True if the rows are the tensor's first axes."""
        return self.axes == (0,) or self.axes == tuple(range(len(self.axes)))

    def like(self, rows: Tensor, format: torch.memory_format) -> Tensor:
        """Return the same in the memory format of the tap's output."""
        if self.leads:
            grid = rows if rows.shape == self.shape else rows.view(self.shape)
            return grid if grid.dim() < 4 and grid.is_contiguous() else grid.to(memory_format=format)
        return self(rows).contiguous(memory_format=format)


def leading(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the tensor with ``axes`` first, in their order."""
    if axes == (0,):  # the usual case
        return tensor
    first = tuple(range(len(axes)))
    return tensor if axes == first else tensor.movedim(axes, first)


def product(shape: Iterable[int]) -> int:
    """Return the product of the sizes in ``shape``; 1 if there are none."""
    result = 1
    for size in shape:
        result *= size
    return result
