"""The function through which the error leaves: one node of the graph that hands every tap its signal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bpfree.errors import UsedRecordError
from bpfree.mechanisms.once import once
from bpfree.mechanisms.side_terms import Fetching
from bpfree.signals import Signals

Deliver = Callable[[Tensor], Sequence["Tensor | None"]]
"""Maps dL/do, shaped as the output, to one signal for each tap, shaped as its output."""


def broadcast(
    deliver: Deliver, output: Tensor, taps: Sequence[Tensor], *, just_in_time: bool, fetching: Fetching
) -> Tensor:
    """The output as it is; in its backward pass ``deliver`` makes the gradients of ``taps`` from the output's.

    Args:
        deliver: Makes the signals.
        output: Where the error is taken.
        taps: What receives them.
        just_in_time: Ask for each signal only when its segment is about to run, so that they never all exist at once.
        fetching: Says when it is not the error that arrives, but a side term on its way to the gates.
    """
    arrivals = [_Arrival(tap) for tap in taps] if just_in_time else []
    result: Tensor = Broadcast.apply(deliver, arrivals, fetching, output, *taps)  # type: ignore[no-untyped-call]
    return result


class _Arrival:
    """A hook on a tap's gradient: exchanges the stand-in, zeros without memory, for the tap's signal."""

    def __init__(self, tap: Tensor) -> None:
        self._of_tap = (tap.shape, tap.dtype, tap.device)
        self._signal: Callable[[], Tensor] | None = None
        if tap.requires_grad:
            tap.register_hook(self)  # type: ignore[no-untyped-call]

    def announce(self, signal: Callable[[], Tensor]) -> Tensor:
        """Remember where the signal is to be had, and return the stand-in."""
        self._signal = signal
        shape, dtype, device = self._of_tap
        return torch.zeros((), dtype=dtype, device=device).expand(shape)

    def __call__(self, grad: Tensor) -> Tensor | None:
        if self._signal is None:
            return None
        signal, self._signal = self._signal().to(grad), None
        # Where the tap's output has another consumer as well, that one's gradient is in `grad` already.
        return grad + signal if any(grad.stride()) else signal


class Broadcast(torch.autograd.Function):
    """Identity on the output; in backward, the taps' gradients are the signals made from the output's.

    Because one function returns them all, a single ``loss.backward()`` reaches every segment: no re-entrant calls, and
    hooks, accumulation, GradScaler and DDP's reducer see ordinary gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        deliver: Deliver,
        arrivals: Sequence[_Arrival],
        fetching: Fetching,
        output: Tensor,
        *taps: Tensor,
    ) -> Tensor:
        """Return ``output``; ``taps`` are kept only as edges of the graph, not as memory."""
        ctx.deliver, ctx.arrivals, ctx.fetching = deliver, arrivals, fetching
        # Nothing is needed from it, but autograd frees saved tensors after a backward pass: it tells us of a second.
        ctx.save_for_backward(output.new_empty(0))
        # Not `output` itself: autograd would make it a view that no in-place operation may follow.
        return output.detach()

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the error itself for the output and one signal a tap."""
        if ctx.fetching.under_way:
            return (None,) * len(ctx.needs_input_grad)
        try:
            _ = ctx.saved_tensors
        except RuntimeError as freed:
            raise UsedRecordError(
                "this forward pass was already used by a backward pass. Run the model again before the next "
                "loss.backward(), or pass retain_graph=True to the first."
            ) from freed
        (error,) = grads
        signals = ctx.deliver(error)
        if isinstance(signals, Signals):
            signals = [arrival.announce(partial(signals.__getitem__, i)) for i, arrival in enumerate(ctx.arrivals)]
        return None, None, None, error, *signals
