"""The mechanism of PEPITA: the error changes the input, and layers learn from the change of their activations.

The first pass stores no graph; it keeps the activations of the layers that learn. When the error arrives the model
runs once more, on x - F e, with the same dropout masks; each layer's gradient is formed when the next layer begins.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from bpfree.axes.layout import batch_dims
from bpfree.axes.sites import product
from bpfree.errors import BpfreeWarning, StateError, TapShapeError, UnsupportedLayerError
from bpfree.feedback.lazy_buffers import LazyBuffers
from bpfree.feedback.random import derived_seed, draw
from bpfree.layers.first_argument import first_argument, with_first
from bpfree.layers.function import Service, find_service
from bpfree.layers.kinds import CONVOLUTIONS
from bpfree.layers.services import Services
from bpfree.mechanisms.base import Rule, taught
from bpfree.mechanisms.forward_only.mechanism import ForwardOnlyMechanism, GradientsOfError, GraphlessPass
from bpfree.mechanisms.forward_only.pepita_passes import FirstPass, HeadError, LayerCall, Learners, SecondPass
from bpfree.mechanisms.function_transforms import refuse_transform_within
from bpfree.module_tree import newcomers
from bpfree.plan import Plan
from bpfree.rerun.arguments import Call
from bpfree.rerun.snapshot import RunSnapshot
from bpfree.rerun.stop import StopForward
from bpfree.tabulate import others
from bpfree.taps import nothing_to_tap

OutputError: TypeAlias = Literal["first", "second"]
Positions: TypeAlias = Literal["mean", "sqrt", "sum"]

_SERVED = (nn.Linear, *CONVOLUTIONS)

_LOOKS = 10
"""In so many passes, once they have an error, activations are looked at that are the same in both passes."""


@dataclass(frozen=True)
class PepitaOptions:
    """PEPITA's options; see :class:`bpfree.PEPITA`."""

    amplitude: float
    output_error: OutputError
    positions: Positions
    scale: float


class PepitaMechanism(ForwardOnlyMechanism):
    """Runs two passes, and makes gradients from the difference of their activations.

    ``feedback["F"]`` is F, shape ``(n_in, c)``, drawn in the first forward pass.
    """

    def __init__(self, rule: Rule, plan: Plan, options: PepitaOptions) -> None:
        super().__init__(rule, plan)
        self._options = options
        self._layers = _served(plan.model)
        if not self._layers:
            raise UnsupportedLayerError(
                f"{type(rule).__name__} trains Linear and convolution layers, and the model has none. Use a direct "
                "rule (bpfree.DFA) or backpropagation."
            )
        if not plan.taps:
            raise nothing_to_tap(plan.model)
        self.feedback = LazyBuffers()
        self._roles: dict[str, str] = {}
        self._services = Services()
        self._looks = _LOOKS if plan.verify else 0

    # -- hooks ---------------------------------------------------------------------------------------------------

    def _hook_parts(self) -> None:
        """Put hooks on the layers that learn, their non-linearities, and dropout, and the usual ones."""
        add = self._parts_handles.append
        for name, layer in self._layers.items():
            add(layer.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True))
            add(layer.register_forward_hook(partial(self._leave_layer, name), prepend=True))
        dropouts = {name: module for name, module in self.plan.model.named_modules() if isinstance(module, _DropoutNd)}
        for name, module in {**dropouts, **self.plan.taps}.items():
            add(module.register_forward_hook(partial(self._activated, name, again=name not in self.plan.taps)))
        super()._hook_parts()

    def _hooks(self, name: str) -> bool:
        return name in self._layers

    def _follow_model(self) -> None:
        if not self._tree.has_changed():
            return
        before, self._layers = self._layers, _served(self.plan.model)
        self._services.forget()
        self._roles = {}
        super()._follow_model()
        new, gone = newcomers(before, self._layers), newcomers(self._layers, before)
        if new or gone:
            names = ", ".join(map(repr, new or gone))
            done = "came into the model after attach" if new else "is not in the model any more"
            warnings.warn(
                f"layer {names} {done}: {self.rule} trains what is there now. The table shows what each layer learns "
                "from.",
                BpfreeWarning,
                stacklevel=2,
            )

    def _seen(self) -> FirstPass | SecondPass | None:
        state = self._passes.now()
        return None if state is None else state.seen

    def _enter(self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        seen = self._seen()
        if seen is None:
            self._reached(name, layer, args)
        else:
            refuse_transform_within(self.rule, "layer", name)
            service = self._services.of(name, layer, (args, kwargs), self._find_service)
            seen.enter(name, layer, (args, kwargs), service)

    def _find_service(self, layer: nn.Module, call: Call) -> Service:
        with self._passes.aside():  # a layer inside this one is not called by the pass
            return find_service(layer, call)

    def _leave_layer(self, name: str, layer: nn.Module, args: Any, output: Any) -> None:
        seen = self._seen()
        if seen is not None:
            seen.leave(name, layer, output)

    def _activated(self, tap: str, module: nn.Module, args: Any, output: Any, *, again: bool) -> None:
        seen = self._seen()
        if seen is not None and isinstance(output, Tensor):
            seen.activated(tap, output, again=again)

    # -- the first pass --------------------------------------------------------------------------------------------

    def _start(self, call: Call, stack: ExitStack) -> None:
        state = self._passes.now()
        assert state is not None
        state.seen = FirstPass(call, RunSnapshot.now(self.plan, call))

    def _gradients(self, output: Tensor, where: str) -> tuple[GradientsOfError, Tensor]:
        state = self._passes.now()
        assert state is not None
        first, state.seen = state.seen, None
        assert isinstance(first, FirstPass)
        head = first.head(output, where)
        first.check()
        self._note(first, head)
        _, x = _input(self.plan.model, first.call)
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

    def _note(self, first: FirstPass, head: LayerCall) -> None:
        self._roles = {call.name: call.tap for call in first.calls if call.h is not None}
        self._roles[head.name] = ""
        if computed := [name for name in self._roles if _is_computed_and_learns(self._layers[name])]:
            self._tell_of_computed(computed)

    def _tell_of_computed(self, names: Sequence[str]) -> None:
        named = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        self.tell_once(
            "computed",
            f"the weight of layer {named} is computed from other parameters (a parametrization, pruning), and "
            f"{self.rule} makes gradients of a layer's own weight alone: those others learn nothing. Make the weight a "
            "parameter again (remove_parametrizations, prune.remove), or use another rule (bpfree.DFA, bpfree.FA).",
        )

    def _prepare(self, n_in: int, c: int, head: LayerCall, device: torch.device) -> None:
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

    def _second_pass(self, first: FirstPass, learners: Learners, output: Tensor, error: Tensor) -> dict[Tensor, Tensor]:
        options, rows = self._options, error.reshape(output.shape)
        # N: the rows that a loss touches. An empty batch gives zeros.
        n: Any = taught(rows).sum().clamp(min=1)
        if rows.device.type == "cpu":  # elsewhere the question would stall the queue of kernels
            n = n.item()

        def hidden(call: LayerCall, h: Tensor) -> Tensor:
            positions = product(call.shape[2:]) if isinstance(call.layer, CONVOLUTIONS) else 1
            shared = {"mean": positions, "sqrt": math.sqrt(positions), "sum": 1}[options.positions]
            assert call.h is not None
            signal: Tensor = (call.h - h) * (options.scale / (n * shared))
            call.h = None
            if looks and not signal.any():
                self._tell_of_no_change(call)
            return signal

        looks = self._looks > 0 and bool(rows.any())
        self._looks -= looks
        at_head = HeadError(rows, output if options.output_error == "second" else None, options.scale / n)
        second = SecondPass(first.calls, learners, hidden, at_head)
        self._passes.begin(GraphlessPass(seen=second))
        try:
            args, kwargs = self._modulated(first.call, rows * (n / options.scale))
            # The masks and statistics of the first pass; no random number and no statistic moves.
            with first.snapshot.restored(self.plan.model), torch.no_grad():
                # Not the model's __call__: its hooks are for passes that somebody asked for.
                self.plan.model.forward(*args, **kwargs)
        except StopForward:
            pass
        finally:
            self._passes.end()
        return second.gradients

    def _tell_of_no_change(self, call: LayerCall) -> None:
        self.tell_once(
            f"no change {call.name}",
            f"layer {call.name!r} gets a gradient of zero: behind it {call.tap!r} has the same output in both passes, "
            "for every sample of a batch. PEPITA learns from how activations change with the input; steps (spikes) and "
            "saturated units hardly do. Put a smooth non-linearity there, raise PEPITA(amplitude=...), or use a rule "
            "that takes a step's surrogate gradient (bpfree.DFA).",
        )

    def _modulated(self, call: Call, error: Tensor) -> Call:
        """Return the arguments with x - F e in place of x."""
        name, x = _input(self.plan.model, call)
        return with_first(call, name, x - (error @ self.feedback["F"].T.to(error)).reshape(x.shape).to(x))

    # -- what it looks like ----------------------------------------------------------------------------------------

    def table(self) -> tuple[list[str], list[list[str]], list[str]]:
        """Return the header, a row for each layer that could learn, and a remark on layers without a gradient."""
        rows = [[name, type(layer).__name__, self._role(name)] for name, layer in self._layers.items()]
        unreached = ", ".join(others(self.plan.model, self._layers))
        remarks = [f"No gradient reaches {unreached}, unless above error_at."] if unreached else []
        return ["layer", "kind", "learns from"], rows, remarks

    def _role(self, name: str) -> str:
        if not self._roles:
            return "known after the first forward pass"
        service = self._services.known().get(name)
        if service is not None and service.why:
            return f"nothing: {service.why}"
        if name not in self._roles:
            return "nothing: no tap of its output's shape follows before the next layer"
        tap = self._roles[name]
        return f"the two passes' difference at {tap}" if tap else "the error"


def _is_computed_and_learns(layer: nn.Module) -> bool:
    """Return whether the weight of a layer is computed from parameters, one of which wants a gradient."""
    if "weight" in layer._parameters:
        return False
    return any(parameter.requires_grad for name, parameter in layer.named_parameters() if name != "bias")


def _served(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, _SERVED)}


def _input(model: nn.Module, call: Call) -> tuple[str | None, Tensor]:
    """Return the model's first argument: its name (None if it was given by position), and the tensor."""
    name, given = first_argument(model, *call)
    if name is None and not call[0]:
        raise UnsupportedLayerError(
            "PEPITA adds the error to the model's input, and the model takes its arguments as **kwargs: which of them "
            "is the input cannot be told. Give it by position, or name it in the signature of forward."
        )
    if not isinstance(given, Tensor) or not given.is_floating_point():
        found = f"a tensor of {given.dtype}" if isinstance(given, Tensor) else f"of type {type(given).__name__}"
        raise UnsupportedLayerError(
            f"PEPITA adds the error to the model's input, and the first argument is {found}; it must be a floating "
            "point tensor. Embed discrete inputs before the model, or use another rule (bpfree.DFA)."
        )
    return name, given
