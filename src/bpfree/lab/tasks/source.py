"""Data that are one batch, or draw their own: all steps of a part of a run come from one place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Source(Protocol):
    """Where the steps of a run come from, batches ``((features, edges), targets)``."""

    @property
    def graph(self) -> tuple[Tensor, Tensor]:
        """Features and edges of all nodes, which are evaluated."""

    @property
    def every_step(self) -> bool:
        """Whether that is done behind every step, and not only behind each part of the run."""

    def steps(self, n: int) -> Iterator[Any]:
        """The batches of the next ``n`` steps."""

    def to(self, device: torch.device) -> Source:
        """The same on a device."""


@dataclass(frozen=True)
class One:
    """What Lightning takes for the batches of an epoch: one, where all steps come from."""

    source: Source

    def __iter__(self) -> Iterator[Source]:
        yield self.source

    def __len__(self) -> int:
        return 1
