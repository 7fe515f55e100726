"""Models on which several cuts are tried: a chain, one with convolutions, and one with paths around the cuts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DEPTH, C = 4, 3


def mlp() -> nn.Sequential:
    """Four hidden layers of tanh."""
    torch.manual_seed(0)
    return nn.Sequential(*[part for _ in range(DEPTH) for part in (nn.Linear(6, 6), nn.Tanh())], nn.Linear(6, C))


def convnet() -> nn.Sequential:
    """Convolutions, pooling and batch norm below linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4),
        nn.Tanh(), nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, C),
    )  # fmt: skip


class Residual(nn.Module):
    """The taps lie on the branches: paths lead around the cuts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)) for _ in range(3))
        self.head = nn.Linear(6, C)

    def forward(self, x: Tensor) -> Tensor:
        """Add what each block gives."""
        h: Tensor = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        found: Tensor = self.head(h)
        return found
