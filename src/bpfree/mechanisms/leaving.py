"""The function through which an output leaves whose error makes the gradients of parameters, not of what lies below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from bpfree.errors import UsedRecordError
from bpfree.mechanisms.once import once

Gradients: TypeAlias = Callable[[Tensor], Sequence["Tensor | None"]]
"""Maps dL/do, shaped as the output, to one gradient for each learner."""


def leave(gradients: Gradients, output: Tensor, learners: Sequence[Tensor]) -> Tensor:
    """The output as it is; in its backward pass ``learners`` get what ``gradients`` makes of its error, once.

    As inputs of one function they get their gradients in the one backward pass that the user asked for: accumulation,
    hooks and DDP's reducer see nothing unusual.
    """
    result: Tensor = _Leave.apply(gradients, output.detach(), *learners)  # type: ignore[no-untyped-call]
    return result


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradients: Gradients, output: Tensor, *learners: Tensor) -> Tensor:
        ctx.gradients = gradients
        # Not `output` itself: autograd would make it a view that no in-place operation may follow.
        return output.detach()

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise UsedRecordError(
                "this forward pass was already used by a backward pass, and this rule or way of attaching it cannot "
                "keep it for a second (retain_graph=True). Run the model again before the next loss.backward()."
            )
        return None, None, *gradients(grads[0])
