"""PEPITA's two passes: the first keeps activations, the second makes the gradients while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from bpfree.errors import ErrorPlacementError, OptionError, TapOutputError, UnsupportedLayerError
from bpfree.layers.first_argument import first_argument
from bpfree.layers.function import Service
from bpfree.layers.function import parameter_gradients as function_parameter_gradients
from bpfree.layers.kinds import parameter_gradients
from bpfree.mechanisms.base import taught
from bpfree.rerun.arguments import Call
from bpfree.rerun.snapshot import RunSnapshot
from bpfree.rerun.stop import StopForward

_TOLERANCE = 1e-3
"""The largest distance allowed between softmax(o) - e and a distribution over the classes."""


@dataclass
class LayerCall:
    """One call of a layer in the first pass, and its activation h after the non-linearity ``tap``."""

    name: str
    layer: nn.Module
    service: Service
    output: Tensor | None = None
    shape: tuple[int, ...] = ()
    h: Tensor | None = None
    version: int = 0
    tap: str = ""


Learners: TypeAlias = Mapping[tuple[nn.Module, str], nn.Parameter]
"""A layer and a parameter's name there -> the parameter that gets the gradient.

Under FSDP2 this is not the parameter that the layer has while it runs.
"""


class FirstPass:
    """Keeps the activations of the first pass."""

    def __init__(self, call: Call, snapshot: RunSnapshot) -> None:
        self.call, self.snapshot = call, snapshot
        self.calls: list[LayerCall] = []
        self._entered = Service("formula")

    def enter(self, name: str, layer: nn.Module, call: Call, service: Service) -> None:
        """Note that a layer is called."""
        if self.calls:
            self.calls[-1].output = None
        self._entered = service

    def leave(self, name: str, layer: nn.Module, output: Any) -> None:
        """Note that a layer has returned."""
        call = LayerCall(name, layer, self._entered)
        if isinstance(output, Tensor):
            call.output, call.shape = output, output.shape
        self.calls.append(call)

    def activated(self, tap: str, output: Tensor, *, again: bool) -> None:
        """Note the output of a non-linearity, or of a dropout (``again``), which changes a noted activation."""
        call = self.calls[-1] if self.calls else None
        if call is None or call.service.why or call.shape != output.shape or again != (call.h is not None):
            return
        call.h, call.version, call.tap = output, output._version, call.tap or tap

    def head(self, output: Tensor, where: str) -> LayerCall:
        """Return the call of the output layer, whose output is that of the model."""
        head = self.calls[-1] if self.calls else None
        made = head.output if head is not None else None
        if head is None or made is None or head.h is not None or not _same_numbers(made, output):
            raise ErrorPlacementError(
                f"the error is taken at {where}, which is not the output of a Linear or convolution layer as it is. "
                "PEPITA gives its output layer the error itself: name that layer, error_at='head' for example, and "
                "leave what follows (a softmax, a pool) to the part above."
            )
        if head.service.why:
            raise UnsupportedLayerError(
                f"the output layer {head.name!r} cannot learn by PEPITA, for {head.service.why}. Name a Linear or "
                "convolution layer below it, error_at='head' for example, or use another rule (bpfree.DFA)."
            )
        head.output = None
        return head

    def check(self) -> None:
        """Raise TapOutputError if an activation was changed after its tap."""
        for call in self.calls:
            if call.h is not None and call.h._version != call.version:
                raise TapOutputError(
                    f"the output of tap {call.tap!r} was changed in place behind it, and PEPITA compares it with that "
                    "of a second pass. Write the operation behind it without '_' or inplace=True."
                )


def _same_numbers(made: Tensor, output: Tensor) -> bool:
    # A view of another shape is as good.
    return made.data_ptr() == output.data_ptr() and made.numel() == output.numel()


class SecondPass:
    """Makes the gradients while the second pass runs."""

    def __init__(
        self,
        calls: Sequence[LayerCall],
        learners: Learners,
        hidden: Callable[[LayerCall, Tensor], Tensor],
        at_head: HeadError,
    ) -> None:
        self._calls, self._learners, self._hidden, self._at_head = calls, learners, hidden, at_head
        self._at = -1
        self._given: Call = ((), {})
        self._h: Tensor | None = None
        self.gradients: dict[Tensor, Tensor] = {}

    @property
    def _call(self) -> LayerCall:
        return self._calls[self._at]

    def enter(self, name: str, layer: nn.Module, call: Call, service: Service) -> None:
        """Make the gradients of the layer before, and note that a layer is called."""
        if self._h is not None:
            self._add(self._hidden(self._call, self._h))
        self._at, self._given, self._h = self._at + 1, call, None
        if self._at >= len(self._calls) or self._call.layer is not layer:
            raise UnsupportedLayerError(
                f"the second pass called layer {name!r} where the first did not: PEPITA compares two passes through "
                "the same layers, and this model chooses its way by its input."
            )
        if self._at == len(self._calls) - 1 and not self._at_head.needs_output:
            self._learn_head(None)

    def leave(self, name: str, layer: nn.Module, output: Tensor) -> None:
        """End the pass if this is the output of the output layer."""
        if self._at == len(self._calls) - 1:
            self._learn_head(output)

    def _learn_head(self, output: Tensor | None) -> None:
        self._add(self._at_head(output).reshape(self._call.shape))
        raise StopForward

    def activated(self, tap: str, output: Tensor, *, again: bool) -> None:
        """Keep h of the second pass."""
        call = self._call if self._at >= 0 else None
        if call is not None and call.h is not None and output.shape == call.shape and again == (self._h is not None):
            self._h = output

    def _add(self, signal: Tensor) -> None:
        layer, service = self._call.layer, self._call.service
        if service.way == "formula":
            _, input = first_argument(layer, *self._given)
            found = parameter_gradients(layer, input, signal)
        else:
            found = function_parameter_gradients(layer, self._given, signal)
        for name, gradient in found:
            parameter = self._learners.get((layer, name))
            if parameter is None:  # it is computed from others (a parametrization)
                continue
            present = self.gradients.get(parameter)
            self.gradients[parameter] = gradient if present is None else present + gradient


class HeadError:
    """Makes the output layer's error.

    Args:
        error: The error of the first pass, dL/do, ``(N, c)``.
        output: The first pass's output, to make the error of the second pass; None to use the error of the first.
        rate: The factor of one sample's own error in dL/do: 1/N of the rows that the loss uses, times the scale.
    """

    def __init__(self, error: Tensor, output: Tensor | None, rate: Any) -> None:
        self._error = error
        self.needs_output = output is not None
        if output is not None:
            self._taught = taught(error)
            self._first, self._rate = output.softmax(1), rate
            _require_cross_entropy(self._first - error / rate)

    def __call__(self, output: Tensor | None) -> Tensor:
        """Return dL/do, ``(N, c)``, for an output of the second pass."""
        if output is None:
            return self._error
        # The targets y are in the first pass's error, softmax(o) - y.
        second = output.reshape(self._error.shape).softmax(1)
        changed: Tensor = self._error + ((second - self._first) * self._rate).where(self._taught[:, None], 0)
        return changed


def _require_cross_entropy(targets: Tensor) -> None:
    if targets.device.type != "cpu" or not len(targets):  # elsewhere this check would stall the queue of kernels
        return
    off = max(float((targets.sum(1) - 1).abs().max()), -float(targets.min()))
    if off > _TOLERANCE:
        raise OptionError(
            "output_error='second' finds the targets in the error, softmax(o) - e, and they are no distribution over "
            f"the classes (off by {off:.1e}): it is for the mean softmax cross-entropy of the rows that have "
            "targets. If the loss is multiplied by a number, say so (scale=...); for another loss use "
            "output_error='first'."
        )
