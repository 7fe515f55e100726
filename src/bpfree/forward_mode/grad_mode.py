"""A model that stops gradients in its forward pass stops tangents there too.

``torch.no_grad()`` and ``set_grad_enabled(False)`` say nothing to forward-mode derivatives: what is a constant for
autograd would move in a pass with tangents. So such a pass is watched for calls that switch gradients, and switches
tangents with them. Gradients are on in it for that, as they are in the training pass, and nothing requires one.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode

_silent: ContextVar[bool] = ContextVar("silent", default=False)


def rules_are_silent() -> bool:
    """Return whether a pass is running from which no rule must learn, although gradients are on."""
    return _silent.get()


@contextmanager
def silent_rules() -> Generator[None]:
    """Within this context a pass is no rule's, although gradients are on."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


_DIFFERENTIATES = (
    torch.autograd.grad,
    torch.autograd.backward,
    Tensor.backward,
    Tensor.requires_grad_,
    Tensor.requires_grad.__set__,  # type: ignore[attr-defined]
)
"""The functions that a model calls to differentiate in its own forward pass."""


class GradModeWatch(TorchFunctionMode):
    """Switches tangents off and on wherever gradients are switched.

    Attributes:
        needed: Whether the model has done anything for which gradients must be on, or watched.
    """

    def __init__(self) -> None:
        super().__init__()
        self.needed = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``."""
        kwargs = kwargs or {}
        if func is torch._C._set_grad_enabled:
            self.needed = True
            # Inference mode has no tangents at all.
            if not torch.is_inference_mode_enabled():
                torch._C._set_fwd_grad_enabled(args[0])
            return func(*args, **kwargs)
        self.needed = self.needed or func in _DIFFERENTIATES
        if func is torch.autograd.grad and not kwargs.get("create_graph"):
            # For autograd what it returns is a constant.
            with without_tangents():
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def __exit__(self, *_: object) -> None:
        """Take this mode off, also from below those that the model has entered since and not left."""
        above = []
        while (mode := _pop_mode()) is not self:  # type: ignore[no-untyped-call]
            above.append(mode)
        for mode in reversed(above):
            _push_mode(mode)  # type: ignore[no-untyped-call]


@contextmanager
def without_tangents() -> Generator[None]:
    """Within this context operations carry no tangents."""
    before = torch._C._is_fwd_grad_enabled()
    torch._C._set_fwd_grad_enabled(False)
    try:
        yield
    finally:
        torch._C._set_fwd_grad_enabled(before)


@contextmanager
def watched_gradients(watch: GradModeWatch) -> Generator[None]:
    """Within this context gradients are on, and tangents follow them."""
    before = torch._C._is_fwd_grad_enabled()
    try:
        with torch.enable_grad(), silent_rules(), watch:
            yield
    finally:
        torch._C._set_fwd_grad_enabled(before)


@contextmanager
def frozen(model: nn.Module) -> Generator[None]:
    """Within this context no parameter of ``model`` requires a gradient, so that no graph is built."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad = False
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad = True
