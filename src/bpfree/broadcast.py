"""The function through which the error leaves: one node of the graph that hands every tap its signal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bpfree.errors import UsedRecordError

Deliver = Callable[[Tensor], Sequence["Tensor | None"]]
"""Maps dL/do, shaped as the output, to one signal for each tap, shaped as the taps' outputs."""


def broadcast(deliver: Deliver, output: Tensor, taps: Sequence[Tensor]) -> Tensor:
    """The output as it is; in its backward pass ``deliver`` makes the gradients of ``taps`` from the output's."""
    result: Tensor = Broadcast.apply(deliver, output, *taps)  # type: ignore[no-untyped-call]
    return result


class Broadcast(torch.autograd.Function):
    """Identity on the output; in backward, the taps' gradients are the signals made from the output's.

    Because one function returns them all, a single ``loss.backward()`` reaches every segment: no re-entrant calls, and
    hooks, accumulation, GradScaler and DDP's reducer see ordinary gradients.
    """

    @staticmethod
    def forward(ctx: Any, deliver: Deliver, output: Tensor, *taps: Tensor) -> Tensor:
        """Return ``output``; ``taps`` are kept only as edges of the graph, not as memory."""
        ctx.deliver = deliver
        # Nothing is needed from it, but autograd frees saved tensors after a backward pass: it tells us of a second.
        ctx.save_for_backward(output.new_empty(0))
        # Not `output` itself: autograd would make it a view that no in-place operation may follow.
        return output.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the error itself for the output and one signal a tap."""
        try:
            _ = ctx.saved_tensors
        except RuntimeError as freed:
            raise UsedRecordError(
                "this forward pass was already used by a backward pass. Run the model again before the next "
                "loss.backward(), or pass retain_graph=True to the first."
            ) from freed
        (error,) = grads
        return None, error, *ctx.deliver(error)
