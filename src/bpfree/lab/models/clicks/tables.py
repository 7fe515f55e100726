"""The tables of identifiers: a vector and a number for each identifier of each field.

Sparse gradients (``sparse=True``) serve large tables. A step on 2,048 rows of 39 fields with vectors of 16 numbers, by
``torch.optim.SparseAdam`` for the tables and Adam for the rest, beside Adam for all, on one core:

===========  ===========  ====================
identifiers  model        time, sparse / dense
===========  ===========  ====================
1,000,000    FM           0.60
1,000,000    DeepFM       0.79
1,000,000    DeepCross    0.89
100,000      FM           2.0
10,000       FM           2.5
===========  ===========  ====================

SparseAdam moves only the identifiers of a batch, Adam also those that it has seen before. Gradients cannot be clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from bpfree.lab.errors import SettingsError, TableSizeError
from bpfree.lab.models.clicks.choices import check_choices, check_counts

Initialization: TypeAlias = Literal["default", "torchfm"]

_STD = 0.05
_BYTES = 4  # of a float32


class Fields(nn.Module):
    """The rows that identifiers have in tables of all fields: int ``(N, fields)`` to int64 ``(N, fields)``.

    Args:
        shape: The number of identifiers of each field.
        numbers: The numbers for each identifier in all tables of the model together.

    Raises:
        SettingsError: There is no field, or one has no identifier.
        TableSizeError: The tables do not fit into memory.
    """

    offsets: Tensor

    def __init__(self, shape: Sequence[int], numbers: int) -> None:
        super().__init__()
        if not shape or min(shape) < 1:
            raise SettingsError(f"shape {tuple(shape)}: the number of identifiers of each field, 1 or more.")
        self.shape, self.count, self.rows = tuple(shape), len(shape), sum(shape)
        require_memory(self.rows, numbers)
        ends = torch.tensor(self.shape).cumsum(0)
        self.register_buffer("offsets", ends - torch.tensor(self.shape), persistent=False)

    def forward(self, identifiers: Tensor) -> Tensor:
        """Return the rows of identifiers, each counted from 0 in its field.

        Raises:
            SettingsError: There is another number of fields; or, on a CPU, an identifier is not one of its field's.
        """
        if identifiers.dim() != 2 or identifiers.shape[1] != self.count:
            raise SettingsError(
                f"identifiers have the shape {tuple(identifiers.shape)}, but the model is built for {self.count} "
                f"fields: (rows, {self.count}) is needed."
            )
        # Elsewhere the look would wait for the device, and a compiled graph would break.
        if identifiers.device.type == "cpu" and not torch.compiler.is_compiling() and len(identifiers):
            self._require_known(identifiers)
        return identifiers + self.offsets

    def _require_known(self, identifiers: Tensor) -> None:
        lowest, highest = (found.tolist() for found in torch.aminmax(identifiers, dim=0))
        for field, size in enumerate(self.shape):
            if lowest[field] < 0 or highest[field] >= size:
                wrong = lowest[field] if lowest[field] < 0 else highest[field]
                raise SettingsError(
                    f"field {field} has the identifier {wrong}, but the model knows 0 to {size - 1} there: the rows "
                    "are of other vocabularies than the model."
                )

    def extra_repr(self) -> str:
        """Return the number of fields and of identifiers."""
        return f"fields={self.count}, identifiers={self.rows:,}"


class Table(nn.Embedding):
    """A row of numbers for each identifier: rows ``(N, fields)`` to ``(N, fields, width)``."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows' numbers."""
        if self.sparse or self.weight.device.type != "cpu":
            return super().forward(input)
        # The same numbers, whose gradient takes half the time of an embedding's, or a twentieth for rows of one number.
        # On accelerators that gradient is not the same in each run.
        return self.weight.index_select(0, input.flatten()).view(*input.shape, self.embedding_dim)


class Embedding(Table):
    """A vector for each identifier: rows ``(N, fields)`` to ``(N, fields, width)``.

    Args:
        fields: The fields.
        width: The numbers of a vector.
        initialization: Normal of deviation 0.05 (``default``), or as torchfm draws it: uniform within
            sqrt(6 / (identifiers + width)), Xavier's bound for a matrix, which makes vectors the smaller the more
            identifiers there are: 0.0024 for a million, below what batch normalization keeps.
        sparse: The gradient is sparse, for optimizers that take one.
    """

    def __init__(self, fields: Fields, width: int, initialization: Initialization, sparse: bool) -> None:
        check_choices(initialization=(initialization, Initialization))
        check_counts(width=width)
        super().__init__(fields.rows, width, sparse=sparse)
        if initialization == "torchfm":
            nn.init.xavier_uniform_(self.weight)
        else:
            nn.init.normal_(self.weight, std=_STD)


class LinearTerm(Table):
    """A number for each identifier, and a bias: rows ``(N, fields)`` to their sum ``(N,)``.

    Args:
        fields: The fields.
        initialization: 0 (``default``), or as torchfm draws it: standard normal, which makes the first logits of
            deviation sqrt(fields).
        sparse: The gradient is sparse, for optimizers that take one.
    """

    def __init__(self, fields: Fields, initialization: Initialization, sparse: bool) -> None:
        check_choices(initialization=(initialization, Initialization))
        super().__init__(fields.rows, 1, sparse=sparse)
        self.bias = nn.Parameter(torch.zeros(()))
        if initialization == "default":
            nn.init.zeros_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Return the sums."""
        return super().forward(input).sum((1, 2)) + self.bias


def require_memory(rows: int, numbers: int) -> None:
    """Raise TableSizeError if float32 tables of so many rows, ``numbers`` each, do not fit into memory.

    Tables on other devices than a CPU are not looked at, nor is what an optimizer keeps: Adam twice as much again, and
    dense gradients once.
    """
    if torch.get_default_device().type != "cpu":
        return
    size, available = rows * numbers * _BYTES, available_bytes()
    if available is not None and size > available:
        raise TableSizeError(
            f"the tables of {rows:,} identifiers x {numbers} numbers take {size:,} bytes ({size / 2**30:.1f} GiB), but "
            f"only {available:,} bytes ({available / 2**30:.1f} GiB) of memory are available; training needs up to "
            "four times as much. Merge rare identifiers (a larger frequency threshold), or take a smaller width."
        )


def available_bytes() -> int | None:
    """Return the bytes of memory that this process can still get, by what Linux says; None where nothing is said."""
    found = [found for found in (_free_of_machine(), _free_of_group()) if found is not None]
    return min(found, default=None)


def _free_of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _free_of_group() -> int | None:
    """Return what a container's limit leaves; what the system can drop of files counts as taken."""
    group = Path("/sys/fs/cgroup")
    try:
        return int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # there is no such file, or no limit ("max")
        return None
