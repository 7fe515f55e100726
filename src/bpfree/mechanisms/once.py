"""Backward passes that cannot be differentiated themselves, and say so."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bpfree.errors import SecondDerivativeError

_Backward: TypeAlias = Callable[..., tuple[Tensor | None, ...]]


def once(backward: _Backward) -> _Backward:
    """The ``once_differentiable`` of torch, for signals that a rule makes.

    That one alone lets pass what seems to be constant: the gradients that a penalty is put on would then be those of a
    network without the layers below.
    """
    plain = once_differentiable(backward)

    @wraps(backward)
    def checked(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise SecondDerivativeError(
                "gradients of gradients were asked for (create_graph=True), and a learning rule's signals have none. "
                "Compute that term within attachment.paused(), by backpropagation, or leave it out."
            )
        found: tuple[Tensor | None, ...] = plain(ctx, *grads)
        return found

    return checked
