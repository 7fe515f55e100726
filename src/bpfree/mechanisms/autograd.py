"""The autograd functions of the mechanisms: each is the identity forwards, and has a backward pass of its own.

=======================  ==============================================================================
function                 what its backward pass does
=======================  ==============================================================================
``SignalsFromError``     gives every tap the signal that is made from the error
``GradientsFromError``   gives every parameter the gradient that is made from the error
``Identity``             passes the gradient; a node of the graph that can be found again
``Gate``                 stops the gradient
=======================  ==============================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

from bpfree.errors import OptionError, SecondDerivativeError, UsedRecordError
from bpfree.feedback.signals import Signals
from bpfree.mechanisms.function_transforms import refuse_batched_errors
from bpfree.rerun.own_graphs import own_graphs

MakeSignals: TypeAlias = Callable[[Tensor], Sequence["Tensor | None"]]
"""Maps dL/do, shaped as the output, to one signal for each tap, shaped as its output."""

MakeGradients: TypeAlias = Callable[[Tensor], Sequence["Tensor | None"]]
"""Maps dL/do, shaped as the output, to one gradient for each learner."""

_Backward: TypeAlias = Callable[..., tuple[Tensor | None, ...]]


def first_order_only(backward: _Backward) -> _Backward:
    """Wrap torch's ``once_differentiable``: raise SecondDerivativeError under ``create_graph=True``.

    Torch's decorator alone takes signals for constants without a word: the gradients that a penalty is put on would
    then be those of a network without the layers below.
    """
    plain = once_differentiable(backward)

    @wraps(backward)
    def checked(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.compiler.is_compiling():
            found: tuple[Tensor | None, ...] = plain(ctx, *grads)
            return found
        if torch.is_grad_enabled():
            raise SecondDerivativeError(
                "gradients of gradients were asked for (create_graph=True), and a learning rule's signals have none. "
                "Compute that term within attachment.paused(), by backpropagation, or leave it out."
            )
        return backward(ctx, *grads)

    return checked


def apply_function(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """Return ``function.apply(*arguments)``, without what torch does for its function transforms where there are none.

    In nets of many small layers that takes as long as the function.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*arguments)  # type: ignore[no-untyped-call]
    return super(torch.autograd.Function, function).apply(*arguments)  # type: ignore[misc]


# -- a signal for every tap --------------------------------------------------------------------------------------------


@dataclass
class Fetching:
    """Says that a side term is fetching its gradient: meanwhile the error sends no signals.

    There is one for each pass. It is not kept by thread: autograd runs parts of a backward pass on threads of its own.
    """

    under_way: bool = False


def signals_from_error(
    make: MakeSignals, output: Tensor, taps: Sequence[Tensor], *, just_in_time: bool, fetching: Fetching
) -> Tensor:
    """Return the output; in its backward pass ``make`` makes the gradients of ``taps`` from the output's.

    Args:
        make: Makes the signals.
        output: Where the error is taken.
        taps: The taps' outputs, which receive them.
        just_in_time: Ask for each signal only when its segment is about to run, so that they never all exist at once.
        fetching: Says when the gradient of a side term runs back, and not that of the error.
    """
    # A hook of the model's own, which is there already, runs before ours: it must see the signal, and not the stand-in.
    arrivals = [None if tap._backward_hooks else _Arrival(tap) for tap in taps] if just_in_time else []
    # A checkpoint around the error's place alone makes this node once, and would miss what it saves in its second run.
    with nullcontext() if torch.compiler.is_compiling() else own_graphs():
        result: Tensor = apply_function(SignalsFromError, make, arrivals, fetching, output, *taps)
    return result


class _Arrival:
    """A hook on a tap's gradient: exchanges the stand-in, zeros without memory, for the tap's signal."""

    def __init__(self, tap: Tensor) -> None:
        self._of_tap = (tap.shape, tap.dtype, tap.device)
        self._signal: Callable[[], Tensor] | None = None
        if tap.requires_grad:
            tap.register_hook(self)  # type: ignore[no-untyped-call]

    def announce(self, signal: Callable[[], Tensor]) -> Tensor:
        """Remember the function that makes the signal, and return the stand-in."""
        self._signal = signal
        shape, dtype, device = self._of_tap
        return torch.zeros((), dtype=dtype, device=device).expand(shape)

    def __call__(self, grad: Tensor) -> Tensor | None:
        if self._signal is None:
            return None
        signal, self._signal = self._signal().to(grad), None
        # Where the tap's output has another consumer as well, that one's gradient is in `grad` already.
        return grad + signal if any(grad.stride()) else signal


class SignalsFromError(torch.autograd.Function):
    """Identity on the output; in backward, the taps' gradients are the signals made from the output's.

    Because one function returns them all, a single ``loss.backward()`` reaches every segment: no re-entrant calls, and
    hooks, accumulation, GradScaler and DDP's reducer see ordinary gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        make: MakeSignals,
        arrivals: Sequence[_Arrival | None],
        fetching: Fetching,
        output: Tensor,
        *taps: Tensor,
    ) -> Tensor:
        """Return ``output``; ``taps`` are kept only as edges of the graph, not as memory."""
        ctx.make, ctx.arrivals, ctx.fetching = make, arrivals, fetching
        # Nothing is needed from it, but autograd frees saved tensors after a backward pass: it tells us of a second.
        ctx.save_for_backward(output.new_empty(0))
        # Not `output` itself: autograd would make it a view that no in-place operation may follow.
        return output.detach()

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the error itself for the output, and one signal per tap."""
        if ctx.fetching.under_way:
            return (None,) * len(ctx.needs_input_grad)
        require_unused(ctx)
        (error,) = grads
        refuse_batched_errors(error)
        signals = ctx.make(error)
        if isinstance(signals, Signals):
            signals = [
                signals[i] if arrival is None else arrival.announce(partial(signals.__getitem__, i))
                for i, arrival in enumerate(ctx.arrivals)
            ]
        return None, None, None, error, *signals


# -- a gradient for every parameter ------------------------------------------------------------------------------------


def gradients_from_error(
    make: MakeGradients, output: Tensor, learners: Sequence[Tensor], *, accumulates: bool = False
) -> Tensor:
    """Return the output; in its backward pass ``learners`` get the gradients that ``make`` makes of its error, once.

    The learners are inputs of one function, so they get their gradients in the one backward pass that the user asked
    for: accumulation, hooks and DDP's reducer see nothing unusual.

    Args:
        make: Makes the learners' gradients.
        output: Where the error is taken.
        learners: The tensors that get them.
        accumulates: True if ``make`` also adds to parameters' ``.grad`` itself, as only ``backward()`` may.
    """
    anchor = Anchor() if accumulates else None
    tensors = [output.detach(), *learners] if anchor is None else [output.detach(), *learners, anchor.tensor]
    result: Tensor = GradientsFromError.apply(make, anchor, *tensors)  # type: ignore[no-untyped-call]
    return result


class Anchor:
    """A leaf that requires a gradient. With it, a function in the graph knows which kind of backward pass runs it."""

    def __init__(self) -> None:
        self.tensor = torch.empty(0, requires_grad=True)
        self._node = get_gradient_edge(self.tensor).node

    def require_accumulating(self) -> None:
        """Raise OptionError where ``torch.autograd.grad`` or ``inputs=`` asks for some gradients alone."""
        if not torch._C._will_engine_execute_node(self._node):
            raise OptionError(
                "torch.autograd.grad() and backward(inputs=...) ask for some gradients alone, and with streaming=True "
                "or threads= segments learn by themselves and would fill .grad all the same. Call loss.backward(), or "
                "leave these options out."
            )


class GradientsFromError(torch.autograd.Function):
    """Identity on the output; in backward, the learners' gradients are made from the output's."""

    @staticmethod
    def forward(ctx: Any, make: MakeGradients, anchor: Anchor | None, output: Tensor, *learners: Tensor) -> Tensor:
        """Return ``output``; ``learners`` are kept only as edges of the graph."""
        ctx.make, ctx.anchor = make, anchor
        # Not `output` itself: autograd would make it a view that no in-place operation may follow.
        return output.detach()

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return one gradient per learner."""
        if ctx.anchor is not None:
            ctx.anchor.require_accumulating()
        refuse_batched_errors(grads[0])
        make, ctx.make = ctx.make, None
        if make is None:
            raise used_record(
                "Run the model again before the next loss.backward(): this rule, or the way it is attached, cannot "
                "keep the pass for a second one (retain_graph=True)."
            )
        made = make(grads[0])
        return None, None, None, *made, *((None,) if ctx.anchor is not None else ())


def require_unused(ctx: Any) -> None:
    """Raise UsedRecordError in a second backward pass: the first one has freed what ``ctx`` saved."""
    try:
        _ = ctx.saved_tensors
    except RuntimeError as freed:
        if "modified by an inplace operation" in str(freed):
            raise
        raise used_record(
            "Run the model again before the next loss.backward(), or pass retain_graph=True to the first."
        ) from freed


def used_record(remedy: str) -> UsedRecordError:
    """Make the error of a second backward pass through one forward pass."""
    return UsedRecordError(f"this forward pass was already used by a backward pass. {remedy}")


# -- nodes -------------------------------------------------------------------------------------------------------------


class Identity(torch.autograd.Function):
    """Passes the gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        """Return the same numbers as another tensor."""
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Return the gradient."""
        return grads[0]


def mark(tensor: Tensor) -> Tensor:
    """Return the same numbers behind a node of their own.

    That node can be found again in the graph, and an in-place operation may follow, also where ``tensor`` is a leaf.
    """
    result: Tensor = Identity.apply(tensor)  # type: ignore[no-untyped-call]
    return result


class Gate(torch.autograd.Function):
    """Stops the gradient. The gradient in front of the gate can still be asked for."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor) -> Tensor:
        """Return the same numbers as another tensor."""
        return leaf.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        """Stop the gradient."""


def gated(output: Tensor) -> Tensor:
    """Return the numbers of a tap's output behind a gate."""
    result: Tensor = Gate.apply(output.detach().requires_grad_())  # type: ignore[no-untyped-call]
    return result
