"""The function through which an output leaves whose error makes the gradients of parameters, not of what lies below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from bpfree.errors import OptionError, UsedRecordError
from bpfree.mechanisms.once import once

Gradients: TypeAlias = Callable[[Tensor], Sequence["Tensor | None"]]
"""Maps dL/do, shaped as the output, to one gradient for each learner."""


def leave(gradients: Gradients, output: Tensor, learners: Sequence[Tensor], *, accumulates: bool = False) -> Tensor:
    """The output as it is; in its backward pass ``learners`` get what ``gradients`` makes of its error, once.

    As inputs of one function they get their gradients in the one backward pass that the user asked for: accumulation,
    hooks and DDP's reducer see nothing unusual.

    Args:
        gradients: Makes the learners' gradients.
        output: Where the error is taken.
        learners: What gets them.
        accumulates: Whether ``gradients`` also adds to parameters' ``.grad`` itself, as only ``backward()`` may.
    """
    anchor = Anchor() if accumulates else None
    tensors = [output.detach(), *learners] if anchor is None else [output.detach(), *learners, anchor.tensor]
    result: Tensor = _Leave.apply(gradients, anchor, *tensors)  # type: ignore[no-untyped-call]
    return result


class Anchor:
    """A leaf that wants a gradient, by which a function in the graph knows what kind of backward pass runs it."""

    def __init__(self) -> None:
        self.tensor = torch.empty(0, requires_grad=True)
        self._node = get_gradient_edge(self.tensor).node

    def require_accumulating(self) -> None:
        """Raise OptionError where ``torch.autograd.grad`` or ``inputs=`` asks for some gradients alone."""
        if not torch._C._will_engine_execute_node(self._node):
            raise OptionError(
                "torch.autograd.grad() and backward(inputs=...) ask for some gradients alone, and with streaming=True "
                "or threads= segments learn by themselves and would fill .grad all the same. Call loss.backward(), or "
                "leave these options out."
            )


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradients: Gradients, anchor: Anchor | None, output: Tensor, *learners: Tensor) -> Tensor:
        ctx.gradients, ctx.anchor = gradients, anchor
        # Not `output` itself: autograd would make it a view that no in-place operation may follow.
        return output.detach()

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.anchor is not None:
            ctx.anchor.require_accumulating()
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise UsedRecordError(
                "this forward pass was already used by a backward pass, and this rule or way of attaching it cannot "
                "keep it for a second (retain_graph=True). Run the model again before the next loss.backward()."
            )
        made = gradients(grads[0])
        return None, None, None, *made, *((None,) if ctx.anchor is not None else ())
