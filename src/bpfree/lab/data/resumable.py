"""Loaders that begin in the middle of an epoch, where a run was interrupted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


class ResumableLoader(DataLoader[tuple[Tensor, Tensor]]):
    """A loader of whole batches that knows how many of an epoch it has given, and can leave these out once.

    Lightning keeps its ``state_dict`` in checkpoints. What is left out is not read: only indices are drawn.

    Args:
        dataset: Gives a batch for each index.
        sampler: The indices of an epoch, in an order that nothing but the epoch determines.
    """

    def __init__(self, dataset: Dataset[tuple[Tensor, Tensor]], sampler: Sampler[Any]) -> None:
        self._rest = _Rest(sampler)
        # A loader draws a seed for its workers at every start. Its own generator keeps it from touching the global
        # one, whose state belongs to the model (dropout).
        super().__init__(dataset, batch_size=None, sampler=self._rest, generator=torch.Generator())

    def state_dict(self) -> dict[str, int]:
        """Return the number of batches given since the epoch began; 0 at its end."""
        return {"batches": self._rest.given % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out that many batches when the next epoch begins."""
        self._rest.left_out = state["batches"]


class _Rest(Sampler[Any]):
    """The indices of another sampler; once, those behind the first ``left_out``."""

    def __init__(self, sampler: Sampler[Any]) -> None:
        self.sampler = sampler
        self.given = self.left_out = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch, if the other sampler has several."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        # A generator: Lightning names the epoch between making an iterator and asking it.
        self.given, self.left_out = self.left_out, 0
        for index in itertools.islice(self.sampler, self.given, None):
            self.given += 1
            yield index

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]
