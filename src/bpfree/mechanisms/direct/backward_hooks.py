"""Full backward hooks on taps. Torch adds them after the forward hooks, where a tap's output has lost its graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import BackwardHook

_INPUT_NODE = "BackwardHookFunctionBackward"


def with_backward_hooks(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Return the output of a tapped module, before it is cut, with the module's backward hooks on it.

    The hooks are called as torch calls them: with the gradient of the input, and with the tap's signal as the
    gradient of the output.
    """
    if not output.requires_grad or torch.compiler.is_compiling():
        return output
    full, _ = module._get_backward_hooks() if module._backward_hooks else ([], [])  # type: ignore[no-untyped-call]
    hook: Any = BackwardHook(module, full, module._get_backward_pre_hooks())  # type: ignore[no-untyped-call]
    places = [
        place
        for place, entry in enumerate(args)
        if isinstance(entry, Tensor) and entry.grad_fn is not None and entry.grad_fn.name() == _INPUT_NODE
    ]
    if places:
        # Torch has wrapped the inputs already, for a hook of its own: no gradient of the output will call that one.
        hook.n_inputs, hook.input_tensors_index = len(args), places
        hook._set_user_hook(args[places[0]].grad_fn)
    wrapped: Tensor = hook.setup_output_hook(output)
    return wrapped
