"""Forward-mode derivatives of autograd functions that have none: made of their own backward.

A ``torch.autograd.Function`` without a ``jvp`` raises in a pass with tangents. Its ``backward`` maps u to J^T u and is
linear in u, so that the derivative of <J^T u, v> by u is J v, for any u. Where ``backward`` cannot be differentiated
(``once_differentiable``, kernels of other libraries) and J is diagonal, J v is ``backward(1) * v``. So the surrogate
gradients of spiking units and straight-through estimators give the tangents that fit their gradients.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from bpfree.forward_mode.function_notes import NOTE, Note, has_tangent
from bpfree.forward_mode.jvp_of_backward import FunctionClass, jvp_of_backward


def function_without_jvp(error: NotImplementedError) -> FunctionClass | None:
    """Return the autograd function whose missing jvp raised ``error``; None for other errors and torch's functions."""
    entry: TracebackType | None = error.__traceback__
    while entry is not None:
        if entry.tb_frame.f_code is torch.autograd.function.BackwardCFunction.apply_jvp.__code__:
            found: FunctionClass = entry.tb_frame.f_locals["self"]._forward_cls
            # Those of torch do more in backward than a derivative: checkpoints accumulate gradients there.
            return None if found.__module__.partition(".")[0] == "torch" else found
        entry = entry.tb_next
    return None


class SurrogateJvps:
    """Gives autograd functions a jvp for the time of a pass."""

    def __init__(self) -> None:
        self._served: list[FunctionClass] = []

    def serve(self, function: FunctionClass) -> None:
        """Give ``function``, from the next pass on, a jvp made of its backward."""
        self._served.append(function)

    @contextmanager
    def installed(self) -> Generator[None]:
        """Within this context the functions that are served have a jvp. Threads may be within at the same time."""
        token, served = object(), list(self._served)
        try:
            for function in served:
                _enter(function, token)
            yield
        finally:
            for function in served:
                _leave(function, token)


_lock = threading.Lock()
_inside: dict[FunctionClass, tuple[set[object], dict[str, Any]]] = {}
"""For every served function a token for each running pass, and its own attributes that were replaced."""


def _enter(function: FunctionClass, token: object) -> None:
    with _lock:
        if function not in _inside:
            own = {name: vars(function)[name] for name in ("forward", "setup_context", "jvp") if name in vars(function)}
            _inside[function] = {token}, own  # before anything is replaced: Ctrl-C may come in the middle of that
            _replace(function)
        _inside[function][0].add(token)


def _leave(function: FunctionClass, token: object) -> None:
    with _lock:
        tokens, own = _inside.get(function, (set(), {}))
        if token not in tokens:  # Ctrl-C came before it was served
            return
        if len(tokens) > 1:
            tokens.remove(token)
            return
        for name in ("forward", "setup_context", "jvp"):
            if name in own:
                setattr(function, name, own[name])
            elif name in vars(function):
                delattr(function, name)
        del _inside[function]


def _replace(function: Any) -> None:
    if function.setup_context is Function.setup_context:
        function.forward = staticmethod(partial(_forward_with_context, function.forward))
    else:
        function.forward = staticmethod(partial(_forward, function.forward))
        function.setup_context = staticmethod(partial(_setup_context, function.setup_context))
    function.jvp = staticmethod(partial(jvp_of_backward, function))


def _forward_with_context(forward: Callable[..., Any], ctx: Any, *args: Any) -> Any:
    if not any(map(has_tangent, args)):
        return forward(ctx, *args)
    note = Note(ctx, args)
    note.outputs = _unaliased(forward(note.context, *args), args, note.context.dirty)
    setattr(ctx, NOTE, note)
    return note.outputs


def _forward(forward: Callable[..., Any], *args: Any) -> Any:
    output = forward(*args)
    # Which inputs are written to is said later.
    return _unaliased(output, args, ()) if any(map(has_tangent, args)) else output


def _setup_context(setup_context: Callable[..., Any], ctx: Any, inputs: Any, output: Any) -> Any:
    if not any(map(has_tangent, inputs)):
        return setup_context(ctx, inputs, output)
    note = Note(ctx, inputs)
    note.outputs = output
    setattr(ctx, NOTE, note)
    return setup_context(note.context, inputs, output)


def _unaliased(output: Any, inputs: Sequence[Any], dirty: Sequence[Tensor]) -> Any:
    """Return ``output``, copied if it is an input or a view: torch wants the tangent of a view to be a view too."""
    if isinstance(output, tuple):
        return tuple(_unaliased(part, inputs, dirty) for part in output)
    if not isinstance(output, Tensor) or any(output is tensor for tensor in dirty):
        return output
    is_alias = output._is_view() or any(output is tensor for tensor in inputs)
    return output.clone() if is_alias else output
