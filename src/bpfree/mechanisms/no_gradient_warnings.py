"""Warnings about tensors that get no gradient because the model ran without a graph."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bpfree.errors import BpfreeWarning


def warn_of_results(returned: Any, given: Any, error_name: str, way: object) -> None:
    """Warn of tensors without a graph that the model returns besides the output where the error is taken.

    Args:
        returned: The model's return value.
        given: The model's arguments.
        error_name: The name of the module where the error is taken.
        way: The rule or option because of which there is no graph below that place.
    """
    if torch.compiler.is_compiling():
        return
    arguments = {id(entry) for entry in tree_leaves(given)}
    for entry in tree_leaves(returned):
        if isinstance(entry, Tensor) and not entry.requires_grad and id(entry) not in arguments and _learnable(entry):
            warnings.warn(
                f"{way}: the model returns a tensor {tuple(entry.shape)} without a graph besides what comes of "
                f"{error_name!r}. What runs before {error_name!r} learns from the error there alone: a loss term of "
                "that tensor would teach nothing, also not the layers that made it. Take the error where such terms "
                "meet (error_at=...), or choose a way that stores the graph. If the tensor is only looked at, all is "
                "well.",
                BpfreeWarning,
                stacklevel=2,
            )
            return


def _learnable(entry: Tensor) -> bool:
    return entry.is_floating_point() or entry.is_complex()


def warn_of_arguments(given: Any, rule: object) -> None:
    """Warn of arguments that require a gradient: ``rule`` has none for them."""
    if torch.compiler.is_compiling():
        return
    if any(isinstance(entry, Tensor) and entry.requires_grad for entry in tree_leaves(given)):
        warnings.warn(
            f"an argument of the model wants a gradient, and {rule} has none for what lies before the model: that does "
            "not learn. Attach the rule to a module that holds all of it, or use another (bpfree.DFA, bpfree.FA); if "
            "it is not to learn, detach() the argument.",
            BpfreeWarning,
            stacklevel=2,
        )


def warn_of_input_gradients(given: Iterable[Any], tell_once: Callable[[str, str], None], rule: object) -> None:
    """Warn once that the gradient of an argument that requires one is the rule's, not that of the loss.

    An argument with a graph is not meant: it is the output of a part before the model, which learns by the rule too.
    """
    for entry in given:
        if isinstance(entry, Tensor) and entry.requires_grad and entry.is_leaf:
            tell_once(
                "input gradient",
                f"an argument of the model wants a gradient, and will get the one that {rule} makes: not that of the "
                "loss with respect to the input, as saliency maps and adversarial examples need it. Compute that "
                "within attachment.paused(), by backpropagation.",
            )


def warn_of_a_call(model: nn.Module, layer: str, rule: object) -> None:
    """Warn that ``layer`` runs without a call of the model that ``rule`` is attached to; say what was called."""
    frame: FrameType | None = sys._getframe(1)
    outermost = ""
    while frame is not None:
        if frame.f_locals.get("self") is model:
            outermost = frame.f_code.co_name
        frame = frame.f_back
    what = f"{type(model).__name__}.{outermost}(...)" if outermost else "a part of the model"
    warnings.warn(
        f"layer {layer!r} was reached by a call of {what}, and not of the model itself: {rule} does not see that, and "
        "it trains by plain backpropagation. Call the model, model(...) and within it self(...) in place of "
        "self.forward(...); attach the rule to the part that is called; or say attachment.paused() where it is meant.",
        BpfreeWarning,
        stacklevel=2,
    )
