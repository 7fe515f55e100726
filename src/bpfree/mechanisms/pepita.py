"""The mechanism of PEPITA: the error changes the input, and layers learn from how their activations answer.

The first pass stores no graph; it leaves the activations of the layers that learn. When the error arrives the model
runs once more, on x - F e, with the same dropout masks; each layer's gradient is formed when the next layer begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.grad as convolution_gradients
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from bpfree.convolution import CONVOLUTIONS, padded
from bpfree.draw import derived_seed, draw
from bpfree.errors import (
    ErrorPlacementError,
    OptionError,
    StateError,
    TapOutputError,
    TapSelectionError,
    TapShapeError,
    UnsupportedLayerError,
)
from bpfree.estimate import Call
from bpfree.layout import batch_dims
from bpfree.mechanisms.base import Rule
from bpfree.mechanisms.forward_only import ForwardOnlyMechanism, Gradients
from bpfree.plan import Plan
from bpfree.preserve import Surroundings
from bpfree.state import LateBuffers
from bpfree.tabulate import others
from bpfree.taps import product

OutputError: TypeAlias = Literal["first", "second"]
Positions: TypeAlias = Literal["mean", "sqrt", "sum"]

_SERVED = (nn.Linear, *CONVOLUTIONS)
_WEIGHT_GRADIENTS = (
    convolution_gradients.conv1d_weight,
    convolution_gradients.conv2d_weight,
    convolution_gradients.conv3d_weight,
)
_TOLERANCE = 1e-3
"""How far softmax(o) - e may lie from a distribution over the classes."""


@dataclass(frozen=True)
class Modulation:
    """PEPITA's options; see :class:`bpfree.PEPITA`."""

    amplitude: float
    output_error: OutputError
    positions: Positions
    scale: float


@dataclass
class _Call:
    """One call of a layer in the first pass, and its activation h behind the non-linearity ``tap``."""

    name: str
    layer: nn.Module
    output: Tensor | None
    shape: torch.Size
    h: Tensor | None = None
    version: int = 0
    tap: str = ""


Learners: TypeAlias = Mapping[tuple[nn.Module, str], nn.Parameter]
"""A layer and a parameter's name there -> the parameter that gets the gradient.

Under FSDP2 that is another one than the layer has while it runs.
"""


class _First:
    """Keeps the activations of the first pass."""

    def __init__(self, call: Call, surroundings: Surroundings) -> None:
        self.call, self.surroundings = call, surroundings
        self.calls: list[_Call] = []

    def enter(self, name: str, layer: nn.Module, input: Tensor) -> None:
        """A layer is called."""
        if self.calls:
            self.calls[-1].output = None

    def leave(self, name: str, layer: nn.Module, output: Tensor) -> None:
        """A layer returns."""
        self.calls.append(_Call(name, layer, output, output.shape))

    def activated(self, tap: str, output: Tensor, *, again: bool) -> None:
        """A non-linearity returns, or a dropout (``again``), which changes an activation that is there."""
        call = self.calls[-1] if self.calls else None
        if call is None or call.shape != output.shape or again != (call.h is not None):
            return
        call.h, call.version, call.tap = output, output._version, call.tap or tap

    def head(self, output: Tensor, where: str) -> _Call:
        """The call of the output layer, whose output is the model's."""
        head = self.calls[-1] if self.calls else None
        made = head.output if head is not None else None
        if head is None or made is None or head.h is not None or not _same_numbers(made, output):
            raise ErrorPlacementError(
                f"the error is taken at {where}, which is not the output of a Linear or convolution layer as it is. "
                "PEPITA gives its output layer the error itself: name that layer, error_at='head' for example, and "
                "leave what follows (a softmax, a pool) to the part above."
            )
        head.output = None
        return head

    def check(self) -> None:
        """Raise TapOutputError for an activation that is not what the tap gave."""
        for call in self.calls:
            if call.h is not None and call.h._version != call.version:
                raise TapOutputError(
                    f"the output of tap {call.tap!r} was changed in place behind it, and PEPITA compares it with that "
                    "of a second pass. Write the operation behind it without '_' or inplace=True."
                )


def _same_numbers(made: Tensor, output: Tensor) -> bool:
    # A view of another shape is as good.
    return made.data_ptr() == output.data_ptr() and made.numel() == output.numel()


class _Head(Exception):  # noqa: N818 - not an error: what lies above the output layer need not run
    """The second pass has reached the output layer."""


class _Second:
    """Makes the gradients while the second pass runs."""

    def __init__(
        self, calls: Sequence[_Call], learners: Learners, hidden: Callable[[_Call, Tensor], Tensor], at_head: _AtHead
    ) -> None:
        self._calls, self._learners, self._hidden, self._at_head = calls, learners, hidden, at_head
        self._at = -1
        self._input: Tensor | None = None
        self._h: Tensor | None = None
        self.gradients: dict[Tensor, Tensor] = {}

    @property
    def _call(self) -> _Call:
        return self._calls[self._at]

    def enter(self, name: str, layer: nn.Module, input: Tensor) -> None:
        """The layer before is done with."""
        if self._h is not None:
            self._add(self._hidden(self._call, self._h))
        self._at, self._input, self._h = self._at + 1, input, None
        if self._at >= len(self._calls) or self._call.layer is not layer:
            raise UnsupportedLayerError(
                f"the second pass called layer {name!r} where the first did not: PEPITA compares two passes through "
                "the same layers, and this model chooses its way by its input."
            )
        if self._at == len(self._calls) - 1 and not self._at_head.needs_output:
            self._learn_head(None)

    def leave(self, name: str, layer: nn.Module, output: Tensor) -> None:
        """The output layer's output ends the pass."""
        if self._at == len(self._calls) - 1:
            self._learn_head(output)

    def _learn_head(self, output: Tensor | None) -> None:
        self._add(self._at_head(output).reshape(self._call.shape))
        raise _Head

    def activated(self, tap: str, output: Tensor, *, again: bool) -> None:
        """Keep h of the second pass."""
        call = self._call if self._at >= 0 else None
        if call is not None and call.h is not None and output.shape == call.shape and again == (self._h is not None):
            self._h = output

    def _add(self, signal: Tensor) -> None:
        layer: Any = self._call.layer
        assert self._input is not None
        for name, gradient in _local_gradients(layer, self._input, signal):
            parameter = self._learners.get((layer, name))
            if parameter is None:  # it is computed from others (a parametrization)
                continue
            present = self.gradients.get(parameter)
            self.gradients[parameter] = gradient if present is None else present + gradient


class _AtHead:
    """The output layer's error, as ``output_error`` asks for it."""

    def __init__(self, options: Modulation, error: Tensor, output: Tensor) -> None:
        self._error = error
        self.needs_output = options.output_error == "second"
        if self.needs_output:
            self._first, self._rate = output.softmax(1), options.scale / max(len(error), 1)
            _require_cross_entropy(self._first - error / self._rate)

    def __call__(self, output: Tensor | None) -> Tensor:
        """dL/do, ``(N, c)``, for an output of the second pass."""
        if output is None:
            return self._error
        # The targets y are in the first pass's error, softmax(o) - y.
        second = output.reshape(self._error.shape).softmax(1)
        return self._error + (second - self._first) * self._rate


def _require_cross_entropy(targets: Tensor) -> None:
    if targets.device.type != "cpu" or not len(targets):  # elsewhere the question would stall the queue of kernels
        return
    off = max(float((targets.sum(1) - 1).abs().max()), -float(targets.min()))
    if off > _TOLERANCE:
        raise OptionError(
            "output_error='second' finds the targets in the error, softmax(o) - e, and they are no distribution over "
            f"the classes (off by {off:.1e}): it is for the mean softmax cross-entropy of all rows. If the loss is "
            "multiplied by a number, say so (scale=...); for another loss use output_error='first'."
        )


class ModulatedMechanism(ForwardOnlyMechanism):
    """Two passes, and gradients from the difference of their activations.

    ``feedback["F"]`` is F, shape ``(n_in, c)``, drawn in the first forward pass.
    """

    def __init__(self, rule: Rule, plan: Plan, options: Modulation) -> None:
        super().__init__(rule, plan)
        self._options = options
        self._layers = {name: module for name, module in plan.model.named_modules() if isinstance(module, _SERVED)}
        if not self._layers:
            raise UnsupportedLayerError(
                f"{type(rule).__name__} trains Linear and convolution layers, and the model has none. Use a direct "
                "rule (bpfree.DFA) or backpropagation."
            )
        if not plan.taps:
            raise TapSelectionError(
                "the model has no non-linearity modules to tap. Name the taps (taps=...), or put bpfree.Tap() "
                "modules into the model after its functional non-linearities."
            )
        self.feedback = LateBuffers()
        self._pass: _First | _Second | None = None
        self._roles: dict[str, str] = {}

    # -- hooks ---------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Also watch the layers that learn, their non-linearities, and dropout."""
        add = self._handles.append
        for name, layer in self._layers.items():
            add(layer.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True))
            add(layer.register_forward_hook(partial(self._leave_layer, name)))
        dropouts = {name: module for name, module in self.plan.model.named_modules() if isinstance(module, _DropoutNd)}
        for name, module in {**dropouts, **self.plan.taps}.items():
            add(module.register_forward_hook(partial(self._activated, name, again=name not in self.plan.taps)))
        super().install()

    def remove(self) -> None:
        """Take the hooks out and forget the forward pass."""
        super().remove()
        self._pass = None

    def _enter(self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self._pass is not None:
            self._pass.enter(name, layer, args[0] if args else kwargs["input"])

    def _leave_layer(self, name: str, layer: nn.Module, args: Any, output: Tensor) -> None:
        if self._pass is not None:
            self._pass.leave(name, layer, output)

    def _activated(self, tap: str, module: nn.Module, args: Any, output: Any, *, again: bool) -> None:
        if self._pass is not None and isinstance(output, Tensor):
            self._pass.activated(tap, output, again=again)

    # -- the first pass --------------------------------------------------------------------------------------------

    def _start(self, call: Call, stack: ExitStack) -> None:
        self._pass = _First(call, Surroundings.now(self.plan.model, self.plan.parts, call))
        stack.callback(self._forget)

    def _forget(self) -> None:
        self._pass = None

    def _gradients(self, output: Tensor, where: str) -> tuple[Gradients, Tensor]:
        first = self._pass
        assert isinstance(first, _First)
        head = first.head(output, where)
        first.check()
        self._note(first, head)
        _, x = _input(first.call)
        dims = batch_dims(output.shape, [x.shape], self.plan.batch_dims)
        if x.shape[:dims] != output.shape[:dims]:
            raise TapShapeError(
                f"the model's input has the shape {tuple(x.shape)} and the error {tuple(output.shape)}: PEPITA changes "
                f"every sample by its own error, so they need the same first {dims} dimension(s), the batch "
                "(batch_dims=)."
            )
        c = product(output.shape[dims:])
        self._prepare(product(x.shape[dims:]), c, head, x.device)
        return partial(self._second_pass, first, self._learners(), output.detach().reshape(-1, c)), output

    def _learners(self) -> Learners:
        layers = self._layers.values()
        return {(layer, name): found for layer in layers for name, found in layer.named_parameters(recurse=False)}

    def _note(self, first: _First, head: _Call) -> None:
        self._roles = {call.name: call.tap for call in first.calls if call.h is not None}
        self._roles[head.name] = ""

    def _prepare(self, n_in: int, c: int, head: _Call, device: torch.device) -> None:
        """Draw F when its shape is known."""
        if "F" not in self.feedback:
            generator = torch.Generator().manual_seed(derived_seed(self.plan.seed, "F"))
            drawn = draw((n_in, c), "uniform", generator) * (math.sqrt(6 / n_in) * self._options.amplitude)
            weight: Any = head.layer.weight
            self.feedback["F"] = drawn.to(device, weight.dtype)
        elif self.feedback["F"].shape != (n_in, c):
            raise StateError(
                f"F has shape {tuple(self.feedback['F'].shape)}; an input of {n_in} numbers and an error of {c} need "
                f"{(n_in, c)}. Their sizes may change only in the batch dimensions; attach again for another model."
            )

    # -- the second pass -------------------------------------------------------------------------------------------

    def _second_pass(self, first: _First, learners: Learners, output: Tensor, error: Tensor) -> dict[Tensor, Tensor]:
        options, rows = self._options, error.reshape(output.shape)
        n = max(len(rows), 1)  # an empty batch gives zeros

        def hidden(call: _Call, h: Tensor) -> Tensor:
            positions = product(call.shape[2:]) if isinstance(call.layer, CONVOLUTIONS) else 1
            shared = {"mean": positions, "sqrt": math.sqrt(positions), "sum": 1}[options.positions]
            assert call.h is not None
            signal: Tensor = (call.h - h) * (options.scale / (n * shared))
            call.h = None
            return signal

        second = _Second(first.calls, learners, hidden, _AtHead(options, rows, output))
        self._pass = second
        try:
            args, kwargs = self._modulated(first.call, rows * (n / options.scale))
            # The masks and statistics of the first pass; no random number and no statistic moves.
            with first.surroundings.restored(self.plan.model), torch.no_grad():
                # Not the model's __call__: its hooks are for passes that somebody asked for.
                self.plan.model.forward(*args, **kwargs)
        except _Head:
            pass
        finally:
            self._pass = None
        return second.gradients

    def _modulated(self, call: Call, error: Tensor) -> Call:
        """The arguments with x - F e in the place of x."""
        name, x = _input(call)
        args, kwargs = call
        changed = x - (error @ self.feedback["F"].T.to(error)).reshape(x.shape).to(x)
        return ((changed, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: changed})

    # -- what it looks like ----------------------------------------------------------------------------------------

    def table(self) -> tuple[list[str], list[list[str]], list[str]]:
        """A row for each layer that could learn; what stays as it is is remarked on."""
        rows = [[name, type(layer).__name__, self._role(name)] for name, layer in self._layers.items()]
        unreached = ", ".join(others(self.plan.model, self._layers))
        remarks = [f"No gradient reaches {unreached}, unless above error_at."] if unreached else []
        return ["layer", "kind", "learns from"], rows, remarks

    def _role(self, name: str) -> str:
        if not self._roles:
            return "known after the first forward pass"
        if name not in self._roles:
            return "nothing: no tap of its output's shape follows before the next layer"
        tap = self._roles[name]
        return f"the two passes' difference at {tap}" if tap else "the error"


def _input(call: Call) -> tuple[str | None, Tensor]:
    """The model's first argument: its name if it was given by name, and the tensor."""
    args, kwargs = call
    name = None if args else next(iter(kwargs), None)
    given = args[0] if args else kwargs.get(name or "")
    if not isinstance(given, Tensor) or not given.is_floating_point():
        found = f"a tensor of {given.dtype}" if isinstance(given, Tensor) else f"of type {type(given).__name__}"
        raise UnsupportedLayerError(
            f"PEPITA adds the error to the model's input, and the first argument is {found}; it must be a floating "
            "point tensor. Embed discrete inputs before the model, or use another rule (bpfree.DFA)."
        )
    return name, given


def _local_gradients(layer: Any, input: Tensor, signal: Tensor) -> list[tuple[str, Tensor]]:
    """The gradients of a layer's weight and bias, by name, for a given gradient of its output."""
    found: list[tuple[str, Tensor]] = []
    signal = signal.to(layer.weight.dtype)
    if layer.weight.requires_grad:
        found.append(("weight", _weight_gradient(layer, input.to(layer.weight.dtype), signal)))
    if layer.bias is not None and layer.bias.requires_grad:
        channel = signal.dim() - 1 if isinstance(layer, nn.Linear) else 1
        found.append(("bias", signal.sum([d for d in range(signal.dim()) if d != channel])))
    return found


def _weight_gradient(layer: Any, input: Tensor, signal: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return signal.reshape(-1, layer.out_features).T @ input.reshape(-1, layer.in_features)
    input, padding = padded(layer, input)
    backward: Any = _WEIGHT_GRADIENTS[len(layer.kernel_size) - 1]
    gradient: Tensor = backward(input, layer.weight.shape, signal, layer.stride, padding, layer.dilation, layer.groups)
    return gradient
