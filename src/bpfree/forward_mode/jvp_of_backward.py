"""The tangents of an autograd function's outputs, J v, made of its backward, which maps u to J^T u."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias
from weakref import WeakSet

import torch
import torch.autograd.forward_ad as dual
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from bpfree.errors import ForwardDerivativeError
from bpfree.forward_mode.function_notes import NOTE, Note, NotedContext
from bpfree.precision import in_own_precision
from bpfree.rerun.own_graphs import own_graphs

FunctionClass: TypeAlias = type[Function]


def jvp_of_backward(function: FunctionClass, ctx: Any, *tangents: Tensor | None) -> Any:
    """Return the tangents of the outputs of ``function``, whose forward has left a :class:`Note`."""
    note: Note = vars(ctx).pop(NOTE)
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


def _in_place(output: Tensor, change: Tensor, note: Note, tangents: Sequence[Tensor | None]) -> Tensor:
    """Return ``change``; if the function works in place, write it into the tangent of the input that is ``output``."""
    for input, tangent in zip(note.inputs, tangents, strict=True):
        if output is input and tangent is not None:
            return tangent.copy_(change)
    return change


def _transposed(
    function: Any, context: NotedContext, outputs: Sequence[Any], moves: Sequence[bool], given: Sequence[Tensor]
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
