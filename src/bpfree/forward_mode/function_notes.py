"""Notes that the forward of an autograd function leaves for a jvp that is made of its backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.autograd.forward_ad as dual
from torch import Tensor

NOTE = "_bpfree_note"
"""The attribute of a function's context that carries what its forward noted to its jvp."""


def has_tangent(value: Any) -> bool:
    """Return whether ``value`` is a tensor with a tangent, also within a function's forward."""
    if not isinstance(value, Tensor):
        return False
    # Forward mode is off within a function's forward.
    with dual._set_fwd_grad_enabled(True):
        return dual.unpack_dual(value).tangent is not None  # type: ignore[no-untyped-call]


class Note:
    """The values that a function's forward leaves for its jvp."""

    def __init__(self, ctx: Any, inputs: Sequence[Any]) -> None:
        self.moves = tuple(map(has_tangent, inputs))
        self.inputs = inputs
        self.context = NotedContext(ctx, self.moves)
        self.outputs: Any = None


class NotedContext:
    """A function's context that says that gradients are wanted, and keeps what is saved for them."""

    def __init__(self, ctx: Any, needs: tuple[bool, ...]) -> None:
        vars(self).update(_ctx=ctx, needs_input_grad=needs, saved=(), dirty=(), constant=())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._ctx, name, value)

    @property
    def saved_tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors saved for backward, as constants."""
        return tuple(None if tensor is None else tensor.detach() for tensor in vars(self)["saved"])

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Save tensors, and keep them here too."""
        vars(self)["saved"] = tensors
        self._ctx.save_for_backward(*tensors)

    def mark_dirty(self, *tensors: Tensor) -> None:
        """Note which inputs are written to."""
        vars(self)["dirty"] = tensors
        self._ctx.mark_dirty(*tensors)

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """Note which outputs are constant."""
        vars(self)["constant"] = tensors
        self._ctx.mark_non_differentiable(*tensors)
