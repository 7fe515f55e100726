"""A model that stops gradients in its forward pass stops tangents there too.

``torch.no_grad()`` and ``set_grad_enabled(False)`` say nothing to forward-mode derivatives: what is a constant for
autograd would move in a pass with tangents. So such a pass is watched for calls that switch gradients, and switches
tangents with them. Gradients are on in it for that, as they are in the training pass, and nothing requires one.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
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
    before = _silent.get()
    try:
        _silent.set(True)  # within the try: Ctrl-C may come right behind it
        yield
    finally:
        _silent.set(before)


def put_back_silence(silent: bool) -> None:
    """Set whether a pass is under way from which no rule is to learn, behind one that was interrupted."""
    if _silent.get() != silent:
        _silent.set(silent)


_DIFFERENTIATES = (
    torch.autograd.grad,
    torch.autograd.backward,
    Tensor.backward,
    Tensor.requires_grad_,
    Tensor.requires_grad.__set__,  # type: ignore[attr-defined]
)
"""The functions that a model calls to differentiate in its own forward pass."""


class PassMode(TorchFunctionMode):
    """A mode of one thread for the time of a pass, which may be interrupted anywhere."""

    def __exit__(self, *_: object) -> None:
        """Take this mode off, also from below those that the model has entered since and not left."""
        _push([mode for mode in _popped(until=self) if mode is not self])


@contextmanager
def pass_modes_off() -> Generator[None]:
    """Within this context the modes of passes around it are off: what they are for is not what is called here."""
    modes = _popped()
    _push([mode for mode in modes if not isinstance(mode, PassMode)])
    try:
        yield
    finally:
        _popped()
        _push(modes)


def _popped(until: TorchFunctionMode | None = None) -> list[TorchFunctionMode]:
    """Take modes off this thread's stack, down to ``until``, or all; the lowest first."""
    found: list[TorchFunctionMode] = []
    while torch._C._len_torch_function_stack():
        found.append(_pop_mode())  # type: ignore[no-untyped-call]
        if found[-1] is until:
            break
    return found[::-1]


def _push(modes: Sequence[TorchFunctionMode]) -> None:
    for mode in modes:
        _push_mode(mode)  # type: ignore[no-untyped-call]


class GradModeWatch(PassMode):
    """Switches tangents off and on wherever gradients are switched.

    Attributes:
        needed: True if the model has done anything for which gradients must be on, or watched.
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
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.is_leaf]
    # torch.func.functional_call may lend weights that are computed from others: constants take their places.
    lent = [
        (owner._parameters, name, weight)
        for owner in model.modules()
        for name, weight in owner._parameters.items()
        if weight is not None and not weight.is_leaf
    ]
    try:
        for parameter in learning:
            parameter.requires_grad = False
        for places, name, weight in lent:
            places[name] = weight.detach()  # type: ignore[assignment]
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad = True
        for places, name, weight in lent:
            places[name] = weight
