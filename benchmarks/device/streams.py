"""Segments on CUDA streams: autograd runs the backward pass of an operation on the stream that ran it forwards.

Segments of a direct rule wait for the error and not for each other, so that each can learn on a stream of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bpfree
from common.nets import MLP
from common.subjects import Step
from device.kit import Cell, Kit
from device.timing import timed_within


class OnStream(nn.Module):
    """Runs a block on a stream of its own; the stream around it waits for it.

    Args:
        block: The block.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self._stream = block, torch.cuda.Stream()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        around = torch.cuda.current_stream()
        self._stream.wait_stream(around)
        with torch.cuda.stream(self._stream):
            found: Tensor = self.block(x)
        around.wait_stream(self._stream)
        x.record_stream(self._stream)
        found.record_stream(around)
        return found


def streams(kit: Kit) -> Iterator[Cell]:
    """DFA with a stream for each segment beside DFA on one stream."""
    impossible = "" if kit.is_cuda else "streams need a CUDA device"
    for net in kit.wide:
        row = {"axis": "streams", "net": net.name, "subject": "DFA, segments on streams", "reference": "DFA"}
        yield Cell(row, _beside_one(kit, net), impossible)


def _beside_one(kit: Kit, net: MLP) -> Callable[[float], dict[str, Any]]:
    def measure(seconds: float) -> dict[str, Any]:
        apart, one = _step(kit, net, apart=True), _step(kit, net, apart=False)
        apart()
        one()
        kit.synchronize()
        pairs = zip(apart.model.parameters(), one.model.parameters(), strict=True)
        same = all(torch.equal(_gradient(first), _gradient(second)) for first, second in pairs)
        return {"same_gradients": same, "time": timed_within(kit, apart, one, seconds)}

    return measure


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _step(kit: Kit, net: MLP, *, apart: bool) -> Step:
    with kit.device:
        layers, (x, y) = list(net.build()), net.data()
    blocks = [nn.Sequential(*layers[place : place + 2]) for place in range(0, len(layers), 2)]
    model = nn.Sequential(*(OnStream(block) if apart else block for block in blocks))
    attachment = bpfree.attach(model, bpfree.DFA(), example_inputs=x)
    return Step(model, lambda: F.cross_entropy(model(x), y).backward(), attachment=attachment, device=kit.device)
