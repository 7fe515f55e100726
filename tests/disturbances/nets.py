"""The rules that are disturbed, and small nets for them.

No net draws random numbers, and none has running statistics: a second thread moves both for plain PyTorch too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import bpfree
from support.matrix import ROWS, Row

WIDTH, CLASSES, LENGTH, N = 6, 4, 3, 8

VARIANTS = {row.name: row for row in (*ROWS.values(), Row("FDFA, streaming", bpfree.FDFA(), {"streaming": True}))}
"""Thirty, by name."""


class Plain(nn.Module):
    """Three layers of one width on the mean of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.rest = _layers()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rest(x.mean(1))
        return output


class Recurrent(nn.Module):
    """A GRU, whose last state three layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.rest = nn.GRU(WIDTH, WIDTH, batch_first=True), _layers()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rest(self.cell(x)[0][:, -1])
        return output


class Attentive(nn.Module):
    """A transformer's layer, and three layers on the mean of what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(WIDTH, 2, 12, dropout=0.0, batch_first=True)
        self.rest = _layers()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rest(self.encoder(x).mean(1))
        return output


class Headed(nn.Module):
    """The error is taken below a last layer, and a layer is run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.Linear(WIDTH, WIDTH), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.head, self.above = nn.Linear(WIDTH, CLASSES), nn.Linear(CLASSES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.above(self.head(self.shared(self.shared(self.first(x.mean(1))))))
        return output


def _layers() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(),
        nn.Linear(WIDTH, CLASSES),
    )  # fmt: skip


@dataclass(frozen=True)
class Net:
    """A net, and how a rule is attached to it.

    Attributes:
        kind: Its class.
        options: Further arguments of ``bpfree.attach``.
    """

    kind: Callable[[], nn.Module]
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """The net, with the same weights every time; in the mode of evaluation, in which attention has a fast path."""
        torch.manual_seed(0)
        return self.kind().eval()


NETS = {
    "plain": Net(Plain),
    "recurrent": Net(Recurrent),
    "attentive": Net(Attentive),
    "headed": Net(Headed, {"error_at": "head"}),
}


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of sequences, and a class for each sequence; the same every time."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(N, LENGTH, WIDTH, generator=generator),
            torch.randint(0, CLASSES, (N,), generator=generator),
        )
        for _ in range(count)
    ]
