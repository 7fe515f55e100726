"""The dot-product test of single modules, to name the one in which tangents and gradients part."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bpfree.forward_mode.dual_numbers import split
from bpfree.forward_mode.own_pass import OwnPass

_TF32 = 2.0**-10


@dataclass
class _ModuleCall:
    """One call of a module: its inputs and outputs in the plain pass, and their tangents."""

    name: str
    inputs: list[Tensor]
    versions: list[int]
    outputs: list[Tensor] = field(default_factory=list)
    input_tangents: list[Tensor | None] = field(default_factory=list)
    output_tangents: list[Tensor | None] = field(default_factory=list)

    @property
    def is_testable(self) -> bool:
        """True if both passes saw the same call, and the call has not overwritten its inputs."""
        same = len(self.inputs) == len(self.input_tangents) and len(self.outputs) == len(self.output_tangents)
        return same and [tensor._version for tensor in self.inputs] == self.versions


class Precision:
    """The coarsest precision of any module's output in a pass.

    Args:
        model: Whose pass it is.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._epsilon = 0.0

    @contextmanager
    def noted(self) -> Generator[None]:
        """Within this context a pass runs."""

        def note(module: nn.Module, args: Any, output: Any) -> None:
            self._epsilon = max([self._epsilon, *map(_epsilon, _floating(output))])

        parts = [module for module in self._model.modules() if module is not self._model]
        with OwnPass(self._model) as own, own.hooked(dict.fromkeys(parts, note)):
            yield

    @property
    def tolerance(self) -> float:
        """The difference of <u, J v> and <J^T u, v> that rounding may make, relative to |u| |J v| and |(J^T u) o v|.

        It is sqrt(eps) / 4, for the coarsest precision of any module's output: 3.7e-9 in double precision, 8.6e-5 in
        single, .008 in float16 and TF32, .022 in bfloat16. Both computations round each number to a relative eps a few
        times, with independent errors: both sums are then off by a few eps of these norms (at most 1.5 was measured).
        With norms of J^T u and v alone, a wide layer would always pass. The rest of the tolerance is for sums of
        differences. A wrong sign gives a difference of 2, a missing branch the part of the change that it carries.
        """
        return math.sqrt(self._epsilon) / 4


class ModuleCalls:
    """The calls of a model's modules in a plain pass, and the tangents of an estimating pass there.

    Args:
        model: The model.
        tolerance: That of :class:`Precision`.
    """

    def __init__(self, model: nn.Module, tolerance: float) -> None:
        self._model, self._tolerance = model, tolerance
        self._names = {module: name for name, module in model.named_modules() if name}
        self._calls: list[_ModuleCall] = []  # in the order in which they end: inner ones first

    @contextmanager
    def graph(self) -> Generator[None]:
        """Within this context a plain pass runs, whose graph is kept."""
        open_calls: list[_ModuleCall] = []

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            inputs = _floating((args, kwargs))
            open_calls.append(_ModuleCall(self._names[module], inputs, [tensor._version for tensor in inputs]))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            call = open_calls.pop()
            call.outputs = _floating(output)
            self._calls.append(call)

        with self._hooked(enter, leave):
            yield

    @contextmanager
    def tangents(self) -> Generator[None]:
        """Within this context an estimating pass runs, whose tangents are kept."""
        open_tangents: list[list[Tensor | None]] = []
        rest = iter(self._calls)

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            open_tangents.append([split(tensor)[1] for tensor in _floating((args, kwargs))])

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            given, call = open_tangents.pop(), next(rest, None)
            if call is not None and call.name == self._names[module]:
                call.input_tangents = given
                call.output_tangents = [split(tensor)[1] for tensor in _floating(output)]

        with self._hooked(enter, leave):
            yield

    @contextmanager
    def _hooked(self, enter: Callable[..., None], leave: Callable[..., None]) -> Generator[None]:
        with (
            OwnPass(self._model) as own,
            own.hooked(dict.fromkeys(self._names, enter), before=True),
            own.hooked(dict.fromkeys(self._names, leave)),
        ):
            yield

    def suspect(self) -> str:
        """Return the innermost module whose tangents do not fit its gradients, with its class; "" if all fit."""
        modules = {name: module for module, name in self._names.items()}
        for call in self._calls:
            if call.is_testable and not _fits(call, self._tolerance):
                return f"{call.name!r} ({type(modules[call.name]).__name__})"
        return ""


def _epsilon(tensor: Tensor) -> float:
    epsilon = torch.finfo(tensor.dtype).eps
    # Accelerators may multiply in TF32, by a switch for every library.
    return epsilon if tensor.device.type == "cpu" or tensor.dtype == torch.float64 else max(epsilon, _TF32)


def _floating(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _fits(call: _ModuleCall, tolerance: float) -> bool:
    """Return whether <w, J t> = <J^T w, t>, for the tangent t of a module's inputs and w of its outputs."""
    moving = [(tensor, t) for tensor, t in zip(call.inputs, call.input_tangents, strict=True) if t is not None]
    moving = [(tensor, t) for tensor, t in moving if tensor.requires_grad]
    outputs = [
        (tensor, t) for tensor, t in zip(call.outputs, call.output_tangents, strict=True) if tensor.requires_grad
    ]
    if not moving or not outputs:
        return True
    # Where no tangent comes out any other w will do.
    w = [torch.ones_like(tensor) if t is None or not bool(t.any()) else t for tensor, t in outputs]
    inputs = [tensor for tensor, _ in moving]
    found = torch.autograd.grad([y for y, _ in outputs], inputs, w, retain_graph=True, allow_unused=True)
    forward = sum(dot(one, t) for one, (_, t) in zip(w, outputs, strict=True) if t is not None)
    products = [g.double() * t.double() for g, (_, t) in zip(found, moving, strict=True) if g is not None]
    backward = sum(float(product.sum()) for product in products)
    scale = abs(forward) + math.sqrt(sum(float(product.square().sum()) for product in products))
    return abs(forward - backward) <= tolerance * scale


def dot(left: Tensor, right: Tensor) -> float:
    """Return the sum of the products of two tensors' numbers, in double precision."""
    return float((left.detach().double() * right.detach().double()).sum())
