"""The function by which a layer's error reaches its input through B."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bpfree.axes.memory_format import format_of
from bpfree.layers.kinds import InputGradient
from bpfree.mechanisms.autograd import first_order_only


class Join(torch.autograd.Function):
    """Identity on a layer's output; in backward the layer's input receives a signal made with B."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, input: Tensor, weight: Callable[[], Tensor], rule: InputGradient) -> Tensor:
        """Return ``output``; only the shape of ``input`` and its place in the graph are kept."""
        ctx.signal = weight, rule, input.shape, format_of(input)
        # A tensor of its own, so that an in-place non-linearity may follow (see SignalsFromError).
        return output.detach()

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient itself for the layer, and the signal made with B for the layers below if they want it."""
        (grad,) = grads
        weight, rule, shape, format = ctx.signal
        B = weight()  # asked for in any case: it tells the rule that the layer learns
        signal = rule(grad, B, shape).to(memory_format=format) if ctx.needs_input_grad[1] else None
        return grad, signal, None, None
