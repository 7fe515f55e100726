"""Full backward hooks on taps: torch puts them behind the forward hooks, where a tap's output has lost its graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import BackwardHook

_INPUT_NODE = "BackwardHookFunctionBackward"


def with_backward_hooks(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """The output of ``module`` in front of its cut, with the module's full backward hooks on it.

    They are called as torch calls them: with the gradient of the input, and with the signal that the tap gets as the
    gradient of the output.
    """
    if not (module._backward_hooks or module._backward_pre_hooks) or not output.requires_grad:
        return output
    full, _ = module._get_backward_hooks() if module._backward_hooks else ([], [])  # type: ignore[no-untyped-call]
    hook: Any = BackwardHook(module, full, module._get_backward_pre_hooks())  # type: ignore[no-untyped-call]
    places = [
        place
        for place, entry in enumerate(args)
        if isinstance(entry, Tensor) and entry.grad_fn is not None and entry.grad_fn.name() == _INPUT_NODE
    ]
    if places:
        # Torch has wrapped the inputs already, for a hook of its own that no gradient of the output will wake.
        hook.n_inputs, hook.input_tensors_index = len(args), places
        hook._set_user_hook(args[places[0]].grad_fn)
    wrapped: Tensor = hook.setup_output_hook(output)
    return wrapped
