"""What the cells have in common: a small net, its batch, training, and what is compared afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import bpfree
from support import models
from support.matrix import Row
from support.models import CLASSES

N, STEPS = 8, 3
RATE, DECAY = 0.5, 0.01
"""Of plain SGD. Kolen-Pollack wants a decay above zero."""

Numbers = dict[str, Tensor]
"""Tensors by name."""


def mlp() -> nn.Sequential:
    """Two hidden layers; the same numbers at every call."""
    torch.manual_seed(0)
    return models.mlp()


class Checkpointed(nn.Module):
    """Four segments; the end of the second and the beginning of the third run again in the backward pass, or do not."""

    def __init__(self, *, again: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.below, self.tanh = nn.Linear(6, 7), nn.Tanh()
        self.inside = nn.Sequential(nn.Linear(7, 8), nn.Dropout(0.3), nn.Sigmoid(), nn.Linear(8, 9))
        self.relu, self.head, self.again = nn.ReLU(), nn.Linear(9, CLASSES), again

    def forward(self, x: Tensor) -> Tensor:
        h = self.tanh(self.below(x))
        h = checkpoint(self.inside, h, use_reentrant=False) if self.again else self.inside(h)
        output: Tensor = self.head(self.relu(h))
        return output


def with_statistics() -> nn.Sequential:
    """A net with running statistics and dropout."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 9), nn.Tanh(),
        nn.Linear(9, CLASSES),
    )  # fmt: skip


def batch(n: int = N) -> tuple[Tensor, Tensor]:
    """Inputs in the default precision, and classes."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64).to(torch.get_default_dtype())
    return x, torch.randint(0, CLASSES, (n,), generator=generator)


def attach(
    row: Row, model: nn.Module, *, rule: bpfree.Rule | None = None, seed: int = 3, **more: Any
) -> bpfree.Attachment:
    """Attach the row's rule, or a stand-in for it."""
    return bpfree.attach(model, rule or row.rule, seed=seed, **row.options, **more)


def sgd(model: nn.Module, attachment: bpfree.Attachment) -> torch.optim.Optimizer:
    """One optimizer for weights and feedback."""
    return torch.optim.SGD([*model.parameters(), *attachment.parameters()], lr=RATE, weight_decay=DECAY)


def train(
    run: Callable[[Tensor], Tensor],
    attachment: bpfree.Attachment,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
) -> None:
    """Take three steps."""
    for _ in range(STEPS):
        optimizer.zero_grad()
        attachment.targets(y)
        F.cross_entropy(run(x), y).backward()
        optimizer.step()


def trained(row: Row, build: Callable[[], nn.Module] = mlp, *, rule: bpfree.Rule | None = None) -> Numbers:
    """What three steps of a plain loop in one process lead to."""
    model, (x, y) = build(), batch()
    attachment = attach(row, model, rule=rule)
    optimizer = sgd(model, attachment)
    torch.manual_seed(7)
    train(model, attachment, optimizer, x, y)
    return learned(model, attachment)


def learned(model: nn.Module, attachment: bpfree.Attachment) -> Numbers:
    """Copies of all that a run may have changed: weights, statistics and feedback, whole where they are sharded."""
    parts = {"model": model, "attachment": attachment}
    return {
        f"{part}.{name}": _whole(tensor.detach()).clone()
        for part, module in parts.items()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }


def _whole(tensor: Tensor) -> Tensor:
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def variant(rule: bpfree.Rule, **methods: Any) -> bpfree.Rule:
    """The same rule with some methods exchanged."""
    kind = type(type(rule).__name__, (type(rule),), methods)
    options = {option.name: getattr(rule, option.name) for option in dataclasses.fields(rule) if option.init}
    found: bpfree.Rule = kind(**options)
    return found


def off(found: Numbers, expected: Numbers) -> float:
    """The largest difference, relative to the largest number of its tensor."""
    assert found.keys() == expected.keys()
    differences = [0.0]
    for name, ours in found.items():
        theirs = expected[name]
        assert ours.shape == theirs.shape, name
        assert bool(ours.isfinite().all()), name
        if ours.numel():
            differences.append(float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30)))
    return max(differences)


def way(start: Numbers, end: Numbers) -> Numbers:
    """How far every tensor of ``start`` has gone."""
    return {name: end[name].double() - before.double() for name, before in start.items()}


def assert_near(found: Numbers, expected: Numbers, tolerance: float) -> None:
    """Every tensor differs from what is expected by that fraction of its norm at most."""
    assert found.keys() == expected.keys()
    for name, theirs in expected.items():
        size, astray = float(theirs.norm()), float((found[name].to(theirs) - theirs).norm())
        assert astray <= tolerance * size, f"{name}: off by {astray:.2e}, of {size:.2e}"
