"""Data that are one batch, or draw their own: all steps of a part of a run come from one place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Source(Protocol):
    """A source of the steps of a run, batches ``((features, edges), targets)``."""

    @property
    def graph(self) -> tuple[Tensor, Tensor]:
        """Features and edges of all nodes, which are evaluated."""

    @property
    def every_step(self) -> bool:
        """True if that is done after every step, not only after each part of the run."""

    def steps(self, n: int) -> Iterator[Any]:
        """Return the batches of the next ``n`` steps."""

    def to(self, device: torch.device) -> Source:
        """Return the same on a device."""


@dataclass(frozen=True)
class One:
    """An epoch of one batch for Lightning: that batch is the source of all steps."""

    source: Source

    def __iter__(self) -> Iterator[Source]:
        yield self.source

    def __len__(self) -> int:
        return 1
