"""Sequences of tokens, read when a batch needs them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bpfree.lab.data.text.token_file import TokenFile


@dataclass(frozen=True)
class Sequences:
    """The sequences of a file of tokens: cut one behind the other, so that none is in two of them.

    Attributes:
        tokens: The file.
        context: The number of tokens in a sequence.
        numbers: Which of its sequences these are, counted from 0, int64 ``(n,)``.
    """

    tokens: TokenFile
    context: int
    numbers: Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, index: Tensor) -> Sequences:
        """Return the sequences at ``index``, int64 ``(k,)``."""
        return Sequences(self.tokens, self.context, self.numbers[index])

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sequences at ``index``, int64 ``(k,)``, and the tokens that follow each of theirs.

        Returns:
            ``x`` and ``y``, int64 ``(k, context)``.
        """
        starts = self.numbers.index_select(0, index) * self.context
        rows = torch.from_numpy(self.tokens.windows(starts.numpy(), self.context + 1))
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
