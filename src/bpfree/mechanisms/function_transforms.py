"""Derivatives of other kinds around a pass, in which a learning rule cannot send signals: they are refused by name.

In a transform of torch.func (``vmap``, ``grad``, ``jvp``, ``jacrev``) a tensor stands for others: it says that it
requires no gradient where it has one, and has no numbers to look at. Hooks that cut and join graphs would do nothing
there, and the model would learn by backpropagation without a word. In forward mode a cut loses the tangents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

from bpfree.errors import LoopError
from bpfree.finite import stands_for_many
from bpfree.forward_mode.dual_numbers import has_tangent

_BY_BACKPROPAGATION = (
    "For derivatives by backpropagation, such as gradients of single samples, do it within attachment.paused(); "
    "where nothing is to learn, within torch.no_grad()."
)


def in_transform() -> bool:
    """Return whether a transform of torch.func is under way; compiled code is asked as eager code was."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def refuse_transforms_of_pass(rule: object, arguments: Any) -> None:
    """Raise LoopError if a pass that begins with these arguments is part of another derivative."""
    if in_transform():
        raise LoopError(
            f"the model is called within a transform of torch.func (vmap, grad, jvp, jacrev), where {rule} cannot send "
            f"signals. Call it outside, and then loss.backward(). {_BY_BACKPROPAGATION}"
        )
    if forward_ad._current_level < 0 or torch.compiler.is_compiling():
        return
    if any(map(has_tangent, tree_leaves(arguments))):
        raise LoopError(
            f"an argument of the model has a tangent (torch.autograd.forward_ad), and {rule} cuts the model, which "
            f"would lose it. {_BY_BACKPROPAGATION}"
        )


def refuse_transform_within(rule: object, kind: str, name: str) -> None:
    """Raise LoopError for a tap or a layer that learns (its ``kind``) if a transform within the model calls it."""
    if in_transform():
        raise LoopError(
            f"{kind} {name!r} is called within a transform of torch.func (vmap, grad, jvp, jacrev), where {rule} "
            "cannot send it a signal. Call it outside of the transform (most modules take a batch as they are), or "
            "leave it out: name other taps (taps=...), or attach the rule to the part of the model in front. "
            'bpfree.BP() and bpfree.ForwardGradient("weights") serve it as it is.'
        )


def refuse_batched_errors(error: Tensor) -> None:
    """Raise LoopError if ``error`` is a batch of errors."""
    if not torch.compiler.is_compiling() and stands_for_many(error):
        raise LoopError(
            "several errors come in one backward pass (is_grads_batched=True, or a transform of torch.func), and "
            "signals are made of one. Call loss.backward() for each, with retain_graph=True. "
            f"{_BY_BACKPROPAGATION}"
        )
