"""Full backward hooks on taps. Torch adds them after the forward hooks, where a tap's output has lost its graph."""

from __future__ import annotations

import sys
from types import FrameType
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
    _silence_torchs(module)
    full, _ = module._get_backward_hooks() if module._backward_hooks else ([], [])  # type: ignore[no-untyped-call]
    hook: Any = BackwardHook(module, full, module._get_backward_pre_hooks())  # type: ignore[no-untyped-call]
    places = [
        place
        for place, entry in enumerate(args)
        if isinstance(entry, Tensor) and entry.grad_fn is not None and entry.grad_fn.name() == _INPUT_NODE
    ]
    if places:
        # Torch has wrapped the inputs already, for its own hook.
        hook.n_inputs, hook.input_tensors_index = len(args), places
        hook._set_user_hook(args[places[0]].grad_fn)
    wrapped: Tensor = hook.setup_output_hook(output)
    return wrapped


def _silence_torchs(module: nn.Module) -> None:
    """Let the hook that torch has made for this call of ``module`` call nobody.

    Torch puts it on what the tap hands on. If a side term uses the tap, that has a graph: the gradient behind the tap
    would call the user's hooks a second time, and what they change would be changed twice.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        made = frame.f_locals.get("bw_hook")
        if isinstance(made, BackwardHook) and made.module is module:
            made.user_hooks, made.user_pre_hooks = [], []
            return
        frame = frame.f_back
