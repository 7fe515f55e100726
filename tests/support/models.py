"""Two small models, a fixed batch for each, and plain training: for tests that need no model of their own."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 4


def mlp() -> nn.Sequential:
    """Two hidden layers of tanh."""
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, CLASSES))


def convnet() -> nn.Sequential:
    """Two convolutions, the second one in two groups, and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(96, CLASSES),
    )


Build = Callable[[], nn.Sequential]
MODELS: dict[str, tuple[Build, tuple[int, ...], list[str]]] = {
    "mlp": (mlp, (6,), ["2", "4"]),
    "convnet": (convnet, (2, 8, 8), ["2", "5"]),
}
"""Each with the shape of one input, and the names of the layers whose input needs a gradient."""


def batch(name: str = "mlp", n: int = 10) -> tuple[Tensor, Tensor]:
    """``n`` inputs for the model of this name, and their classes: the same numbers at every call."""
    generator = torch.Generator().manual_seed(5)
    shape = MODELS[name][1]
    return torch.randn(n, *shape, generator=generator), torch.randint(0, CLASSES, (n,), generator=generator)


def train(run: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int) -> None:
    """Take ``steps`` steps; ``run`` is the model, or what runs it (DDP, a compiled model)."""
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(run(x), y).backward()
        optimizer.step()
