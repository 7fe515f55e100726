"""What runs ask of data, whatever it is."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Samples(Protocol):
    """Inputs ``x`` and targets ``y`` in memory, one row of each a sample."""

    @property
    def x(self) -> Tensor:
        """What the model is given, ``(n, ...)``."""

    @property
    def y(self) -> Tensor:
        """What it learns, ``(n, ...)``."""

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> Samples:
        """The samples at ``index``, int64 of shape ``(k,)``."""


class Data(Protocol):
    """A data set, ready for training."""

    @property
    def train(self) -> Samples:
        """What is trained on."""

    @property
    def evaluation(self) -> Samples:
        """What the task's metric and alignment are measured on; never trained on."""

    @property
    def measured_on(self) -> str:
        """What that is: ``"test"`` or ``"validation"``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input; models that have an argument of this name get it."""

    @property
    def classes(self) -> int:
        """The number of outputs, likewise."""

    def describe(self) -> dict[str, Any]:
        """What reports show of it, and all that tells it from other data: ``n_train``, ``n_eval``, ``checksums`` ..."""
