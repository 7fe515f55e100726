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
from typing import Any, TypeAlias
from weakref import WeakSet

import torch
import torch.autograd.forward_ad as dual
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from bpfree.errors import ForwardDerivativeError
from bpfree.precision import in_own_precision
from bpfree.rerun.own_graphs import own_graphs

FunctionClass: TypeAlias = type[Function]

_NOTE = "_bpfree_note"
"""The attribute of a function's context that carries what its forward noted to its jvp."""


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
    function.jvp = staticmethod(partial(_jvp, function))


def _forward_with_context(forward: Callable[..., Any], ctx: Any, *args: Any) -> Any:
    if not any(map(_has_tangent, args)):
        return forward(ctx, *args)
    note = _Note(ctx, args)
    note.outputs = _unaliased(forward(note.context, *args), args, note.context.dirty)
    setattr(ctx, _NOTE, note)
    return note.outputs


def _forward(forward: Callable[..., Any], *args: Any) -> Any:
    output = forward(*args)
    # Which inputs are written to is said later.
    return _unaliased(output, args, ()) if any(map(_has_tangent, args)) else output


def _setup_context(setup_context: Callable[..., Any], ctx: Any, inputs: Any, output: Any) -> Any:
    if not any(map(_has_tangent, inputs)):
        return setup_context(ctx, inputs, output)
    note = _Note(ctx, inputs)
    note.outputs = output
    setattr(ctx, _NOTE, note)
    return setup_context(note.context, inputs, output)


def _has_tangent(value: Any) -> bool:
    if not isinstance(value, Tensor):
        return False
    # Forward mode is off within a function's forward.
    with dual._set_fwd_grad_enabled(True):
        return dual.unpack_dual(value).tangent is not None  # type: ignore[no-untyped-call]


def _unaliased(output: Any, inputs: Sequence[Any], dirty: Sequence[Tensor]) -> Any:
    """Return ``output``, copied if it is an input or a view: torch wants the tangent of a view to be a view too."""
    if isinstance(output, tuple):
        return tuple(_unaliased(part, inputs, dirty) for part in output)
    if not isinstance(output, Tensor) or any(output is tensor for tensor in dirty):
        return output
    is_alias = output._is_view() or any(output is tensor for tensor in inputs)
    return output.clone() if is_alias else output


class _Note:
    """The values that a function's forward leaves for its jvp."""

    def __init__(self, ctx: Any, inputs: Sequence[Any]) -> None:
        self.moves = tuple(map(_has_tangent, inputs))
        self.inputs = inputs
        self.context = _Context(ctx, self.moves)
        self.outputs: Any = None


class _Context:
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
        vars(self)["saved"] = tensors
        self._ctx.save_for_backward(*tensors)

    def mark_dirty(self, *tensors: Tensor) -> None:
        vars(self)["dirty"] = tensors
        self._ctx.mark_dirty(*tensors)

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        vars(self)["constant"] = tensors
        self._ctx.mark_non_differentiable(*tensors)


def _jvp(function: FunctionClass, ctx: Any, *tangents: Tensor | None) -> Any:
    note: _Note = vars(ctx).pop(_NOTE)
    several = isinstance(note.outputs, tuple)
    outputs = note.outputs if several else (note.outputs,)
    context = note.context
    moves = [
        isinstance(output, Tensor)
        and output.is_floating_point()
        and not any(output is tensor for tensor in context.constant)
        for output in outputs
    ]
    live = [output for output, moved in zip(outputs, moves, strict=True) if moved]
    directions = [tangent if moved else None for tangent, moved in zip(tangents, note.moves, strict=True)]
    with dual._set_fwd_grad_enabled(False), _NoBackwardPass(function):
        backward = partial(_transposed, function, context, outputs, moves)
        found = iter(_changes(function, backward, live, directions))
    changes = [_in_place(output, next(found), note, tangents) if moved else None
               for output, moved in zip(outputs, moves, strict=True)]  # fmt: skip
    return tuple(changes) if several else changes[0]


def _in_place(output: Tensor, change: Tensor, note: _Note, tangents: Sequence[Tensor | None]) -> Tensor:
    """Return ``change``; if the function works in place, write it into the tangent of the input that is ``output``."""
    for input, tangent in zip(note.inputs, tangents, strict=True):
        if output is input and tangent is not None:
            return tangent.copy_(change)
    return change


def _transposed(
    function: Any, context: _Context, outputs: Sequence[Any], moves: Sequence[bool], given: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Return J^T u by input, for the ``given`` u of those outputs that move; zero for the others."""
    # Copies: a backward may write into what it is given, which autograd allows where nothing else holds it.
    arriving = iter([one.clone() for one in given])
    u = [next(arriving) if moved else torch.zeros_like(output) if isinstance(output, Tensor) else None
         for output, moved in zip(outputs, moves, strict=True)]  # fmt: skip
    # Autograd runs backward in the precisions of its arguments, whatever surrounds the model.
    with in_own_precision(given[0]):
        answer = function.backward(context, *u)
    return answer if isinstance(answer, tuple) else (answer,)


_Transposed: TypeAlias = Callable[[Sequence[Tensor]], tuple[Tensor | None, ...]]


def _changes(
    function: FunctionClass, backward: _Transposed, outputs: Sequence[Tensor], directions: Sequence[Tensor | None]
) -> Sequence[Tensor]:
    """Return J v by output: the derivative of <J^T u, v> by u, or J's diagonal times v if that fails."""
    if not outputs:
        return []
    # Within a checkpoint a gradient would run the whole part again, and the taps in it would count that run.
    with torch.enable_grad(), own_graphs():
        u = [torch.ones_like(output.detach()).requires_grad_() for output in outputs]
        answers = backward(u)
        # backward may give fewer than there are inputs.
        pairs = [(answer, v) for answer, v in zip(answers, directions, strict=False) if answer is not None]
        moving = [(answer, v) for answer, v in pairs if v is not None]
        if not moving:
            return [torch.zeros_like(output) for output in u]
        taken = [(answer, v.to(answer.dtype)) for answer, v in moving if answer.requires_grad]
        if len(taken) < len(moving):
            return [_diagonal(function, backward, u, directions)]
        found: Sequence[Tensor | None]
        try:
            found = torch.autograd.grad([answer for answer, _ in taken], u, [v for _, v in taken], allow_unused=True)
        except RuntimeError:  # an operation in it has no derivative
            found = [None]
        if all(change is None for change in found):  # once_differentiable leads to nothing
            return [_diagonal(function, backward, u, directions)]
    return [torch.zeros_like(one) if change is None else change.detach() for change, one in zip(found, u, strict=True)]


_diagonal_ones: WeakSet[FunctionClass] = WeakSet()
"""Functions whose Jacobian has been found to be diagonal."""


@torch.no_grad()
def _diagonal(
    function: FunctionClass, backward: _Transposed, ones: Sequence[Tensor], directions: Sequence[Tensor | None]
) -> Tensor:
    """Return ``backward(1) * v``, where one output depends number by number on inputs of its shape.

    Raises:
        ForwardDerivativeError: It does not.
    """
    (one,) = ones if len(ones) == 1 else (None,)
    if one is not None:
        moving = [(answer, v) for answer, v in zip(backward([one.detach()]), directions, strict=False)
                  if answer is not None and v is not None]  # fmt: skip
        if all(answer.shape == one.shape for answer, _ in moving) and (
            function in _diagonal_ones or _is_diagonal(backward, one, directions)
        ):
            _diagonal_ones.add(function)
            return torch.stack([answer * v for answer, v in moving]).sum(0).to(one.dtype)
    raise ForwardDerivativeError(
        f"autograd function {function.__name__!r} has no jvp, and none can be made of its backward, which torch "
        "cannot differentiate (once_differentiable, .data, numpy, a kernel of its own) and which does not work number "
        "by number. Give it a jvp, write its backward in torch operations without once_differentiable, put the taps "
        "behind it (taps=...), or use a rule with no estimating pass (bpfree.DFA, bpfree.DKP)."
    )


def _is_diagonal(backward: _Transposed, one: Tensor, directions: Sequence[Tensor | None]) -> bool:
    """Return whether backward(s) = backward(1) * s for random signs s: other entries of J would almost surely show."""
    generator = torch.Generator(one.device).manual_seed(0)
    signs = torch.empty_like(one).bernoulli_(generator=generator) * 2 - 1
    for plain, signed, v in zip(backward([one.detach()]), backward([signs]), directions, strict=False):
        if plain is None or signed is None or v is None:
            continue
        if plain.shape != one.shape or not torch.allclose(plain * signs, signed):
            return False
    return True


class _NoBackwardPass(TorchFunctionMode):
    """Within this context a backward pass is refused: it would add to the parameters' gradients."""

    def __init__(self, function: FunctionClass) -> None:
        super().__init__()
        self._function = function

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``, unless it is a backward pass."""
        if func in (torch.autograd.backward, Tensor.backward):
            raise ForwardDerivativeError(
                f"the backward of autograd function {self._function.__name__!r} runs a backward pass of its own, "
                "which adds to the gradients of parameters: no forward-mode derivative can be made of it. Give it a "
                "jvp, let it use torch.autograd.grad, put the taps behind it (taps=...), or use a rule with no "
                "estimating pass (bpfree.DFA, bpfree.DKP)."
            )
        return func(*args, **(kwargs or {}))
