"""The interface of data of any kind: everything that runs need of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

from bpfree.lab.data.lazy import Lazy

Kind = TypeVar("Kind", bound="Samples")
Some = TypeVar("Some", bound="Batched")

PUBLISHED = "the published files, byte for byte"
"""A data set's ``origin`` if there is nothing to say about it."""


@dataclass(frozen=True)
class Samples:
    """Inputs and targets, one row of each a sample.

    Attributes:
        x: The model's inputs, ``(n, ...)``: in memory, or made when they are asked for.
        y: Its targets, ``(n, ...)``.
    """

    x: Tensor | Lazy
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def take(self: Kind, index: Tensor) -> Kind:
        """Return the samples at ``index``, int64 of shape ``(k,)``."""
        x = self.x.subset(index) if isinstance(self.x, Lazy) else self.x[index]
        return type(self)(x, self.y[index])

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs and the targets of the samples at ``index``, int64 of shape ``(k,)``."""
        # index_select copies rows; general indexing of the same rows is several times slower.
        return self.x.index_select(0, index), self.y.index_select(0, index)


class Batchable(Protocol):
    """A source of batches: it is in memory, or is read when it is asked for."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs and the targets of the samples at ``index``, int64 of shape ``(k,)``."""


class Batched(Batchable, Protocol):
    """Samples of which batches are made, and some of which may be chosen."""

    def take(self: Some, index: Tensor) -> Some:
        """Return the samples at ``index``, int64 of shape ``(k,)``."""


class Data(Protocol):
    """A data set, ready for training."""

    @property
    def measured_on(self) -> str:
        """The set that the task's metric is measured on: ``"test"`` or ``"validation"``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input; models that have an argument of this name get it."""

    @property
    def classes(self) -> int:
        """The number of outputs, likewise."""

    def first(self, n: int) -> Data:
        """Return the same with no more than ``n`` samples to train on."""

    def describe(self) -> dict[str, Any]:
        """Return the facts for reports, which also identify the data: ``n_train``, ``n_eval``, ``checksums`` ..."""


class Sampled(Data, Protocol):
    """A data set of samples that are independent of one another, as the nodes of a graph are not."""

    @property
    def train(self) -> Batched:
        """Return the samples to train on."""

    @property
    def evaluation(self) -> Batched:
        """Return the samples on which the task's metric and alignment are measured; never trained on."""
