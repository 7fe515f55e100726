"""float16 with torch's GradScaler: a step whose gradients overflow is skipped, and the first that fits is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bpfree
from common.nets import Net
from device.kit import Cell, Kit
from device.timing import timed_within

FIRST_SCALE = 2.0**30
"""So large that the first gradients overflow in float16."""
MOST_SKIPPED = 40
RULES = {"DFA": bpfree.DFA(), "FDFA": bpfree.FDFA(), "FA": bpfree.FA()}


def grad_scaler(kit: Kit) -> Iterator[Cell]:
    """Every rule beside backpropagation, with the same scaler and optimizer."""
    for name, rule in RULES.items():
        net = kit.nets[0]
        row = {"axis": "GradScaler", "net": net.name, "subject": name, "reference": "BP"}
        yield Cell(row, _beside_bp(kit, net, rule))


def _beside_bp(kit: Kit, net: Net, rule: bpfree.Rule) -> Callable[[float], dict[str, Any]]:
    def measure(seconds: float) -> dict[str, Any]:
        subject, reference = _Scaled.of(kit, net, rule), _Scaled.of(kit, net, bpfree.BP())
        found = subject.until_taken() | {f"{key}_reference": value for key, value in reference.until_taken().items()}
        return found | {"time": timed_within(kit, subject, reference, seconds)}

    return measure


@dataclass
class _Scaled:
    """A model with its optimizer and its scaler."""

    model: nn.Module
    batch: tuple[Tensor, Tensor]
    attachment: bpfree.Attachment
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device

    @classmethod
    def of(cls, kit: Kit, net: Net, rule: bpfree.Rule) -> _Scaled:
        """Attach a rule to a network, with plain SGD."""
        with kit.device:
            model, batch = net.build(), net.data()
        attachment = bpfree.attach(model, rule, example_inputs=batch[0], **net.places)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        scaler = torch.amp.GradScaler(kit.device.type, init_scale=FIRST_SCALE)
        return cls(model, batch, attachment, optimizer, scaler, kit.device)

    def __call__(self) -> None:
        """Take a training step."""
        x, y = self.batch
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.float16):
            loss = F.cross_entropy(self.model(x).flatten(0, -2), y.flatten())
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def until_taken(self) -> dict[str, Any]:
        """Train until a step is taken; say how many were skipped, and whether weights are as they should be."""
        untouched, skipped = True, 0
        while skipped < MOST_SKIPPED:
            weights, scale = self._weights(), self.scaler.get_scale()
            self()
            if self.scaler.get_scale() >= scale:
                break
            skipped += 1
            untouched = untouched and torch.equal(weights, self._weights())
        return {"skipped": skipped, "untouched": untouched, "finite": bool(self._weights().isfinite().all())}

    def _weights(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])
