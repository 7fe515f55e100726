"""Signals that need no error: segments learn in the forward pass itself; nothing is stored or run again for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from bpfree.errors import StreamingError
from bpfree.finite import require_finite
from bpfree.mechanisms.autograd import gradients_from_error
from bpfree.mechanisms.direct.delivery import ErrorHandler
from bpfree.mechanisms.direct.forward_pass import TrainingPass
from bpfree.rerun.own_graphs import own_graphs


class LearnInForwardPass(TrainingPass):
    """A pass that trains every segment as soon as it has run.

    Args:
        names: The names of the taps of such a pass, in order.
        signals: Makes the signals of the taps that are cut, from the shape of the first tap's output.
        ends: The leaves that every segment ends in.
    """

    stores_graph = False

    def __init__(
        self,
        names: Sequence[str],
        signals: Callable[[torch.Size], Sequence[Tensor | None]],
        ends: Sequence[Sequence[Tensor]],
    ) -> None:
        super().__init__()
        self._expected, self._make, self._ends = names, signals, ends
        self._signals: Sequence[Tensor | None] = ()
        self._left_gradients: list[_LeftGradient] = []
        self._behind: Tensor | None = None
        self._sent = 0

    def cut(self, name: str, place: str, output: Tensor) -> Tensor:
        """Let the segment learn. A tap after the last tap of earlier passes ends the model and is not cut."""
        number = len(self.names)
        if number == len(self._expected):
            self._behind = output
            return output
        if name != self._expected[number]:
            raise _way_changes(f"tap {name!r}", repr(self._expected[number]))
        handed_on = super().cut(name, place, output)
        self.handed_on.clear()  # no activation is to stay in memory
        return handed_on

    def ends_in_tap(self, output: Tensor) -> None:
        """Return None: a tap that ends the model is not cut.

        Raises:
            StreamingError: The pass did not reach the same taps as those before it.
        """
        missing = self._expected[len(self.names) :]
        if missing:
            raise _way_changes("the output", repr(missing[0]))
        if self._behind is not None and self._behind is not output:
            raise _way_changes("another tap", "the output")

    def _hand_on(self, output: Tensor) -> Tensor:
        if len(self.names) == 1:
            self._signals = self._make(output.shape)
        return super()._hand_on(output)

    def _take(self, output: Tensor) -> Tensor:
        number = len(self.names) - 1
        signal, self._sent = self._signals[self._sent], self._sent + 1
        if signal is not None and output.requires_grad:
            if signal.shape != output.shape:
                raise _way_changes(
                    f"tap {self.names[number]!r} in the shape {tuple(output.shape)}", str(tuple(signal.shape))
                )
            require_finite(output, f"the output of tap {self.names[number]!r}")
            with own_graphs():  # a checkpoint that the pass is in does not see what backward functions save
                torch.autograd.backward(output, signal.to(output.dtype))
            self._left_gradients += [_LeftGradient(leaf) for leaf in self._ends[number][:1] if leaf.grad is not None]
        return output.detach()

    def _give_back(self, handed_on: Tensor) -> Tensor:
        raise AssertionError("a tap that ends the model is not cut")

    def ends(self, output: Tensor) -> Sequence[Sequence[Tensor]]:
        """Return the leaves that every segment ends in."""
        return self._ends

    def connect(self, output: Tensor, handler: ErrorHandler, taps: Sequence[int], *, just_in_time: bool) -> Tensor:
        """Return the output with the graph of its own segment, which waits for the error."""
        return gradients_from_error(partial(_checked, self._left_gradients), output, [output])


def _way_changes(reached: str, before: str) -> StreamingError:
    return StreamingError(
        f"{reached} was reached where earlier passes had reached {before}: a model whose way changes cannot learn in "
        "its forward pass. Give the targets behind it, before loss.backward()."
    )


class _LeftGradient:
    """The gradient that a forward pass has left in one parameter."""

    def __init__(self, parameter: Tensor) -> None:
        self._parameter, self._grad = parameter, parameter.grad
        assert self._grad is not None
        self._version = self._grad._version

    def gone(self) -> bool:
        """Return whether the gradient has been cleared since."""
        now = self._parameter.grad
        if now is None:
            return True
        return now is self._grad and now._version != self._version and not bool(now.any())


def _checked(left: Sequence[_LeftGradient], error: Tensor) -> list[Tensor]:
    """Return the error, if it is finite and if the gradients of the forward pass are still in the parameters."""
    require_finite(error)
    if any(gradient.gone() for gradient in left):
        raise StreamingError(
            "the gradients that the forward pass left have been cleared: with targets given before it, segments learn "
            "while it runs. Call optimizer.zero_grad() before the model, or give the targets behind the model, before "
            "loss.backward()."
        )
    return [error]
