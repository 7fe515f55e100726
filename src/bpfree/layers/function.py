"""A linear layer as a function of its input and its weight, whatever its own ``forward`` does with them.

A subclass may mask, scale or standardize its weight, pad or crop, or add a path of its own. Where its output is linear
in its input for given weights, its input's gradient is J^T delta with J of that same function, and B can stand in for
the weight there: masks and scales then act on B as they do on W, and B := W is backpropagation.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bpfree.compiled_code import outside_compiled_code
from bpfree.layers.first_argument import first_argument, with_first
from bpfree.layers.kinds import InputGradient, input_gradient, is_computed, is_plain
from bpfree.precision import in_own_precision
from bpfree.rerun.arguments import Call
from bpfree.rerun.own_graphs import own_graphs
from bpfree.rerun.random_state import RandomState
from bpfree.rerun.snapshot import Autocast


@dataclass(frozen=True)
class Service:
    """The method by which a layer's input gets its signal.

    Attributes:
        way: ``"formula"``: by the known gradient of its kind, with B. ``"function"``: through the layer's own forward
            function, run with B. ``"ordinary"``: by autograd, with W.
        why: Why the gradient is ordinary.
    """

    way: Literal["formula", "function", "ordinary"]
    why: str = ""


_PLAIN = (bool, int, float, str, type(None))


def circumstances_of(layer: nn.Module, call: Call) -> Any:
    """Return what a layer's forward function may depend on besides tensors: class, own attributes, arguments."""
    kind = type(layer)
    if "forward" not in vars(layer) and kind.__module__.startswith("torch.nn.modules."):
        return kind
    args, kwargs = call
    attributes = tuple(entry for entry in vars(layer).items() if isinstance(entry[1], _PLAIN))
    given = tuple(entry if isinstance(entry, _PLAIN) else type(entry) for entry in (*args, *kwargs.values()))
    return kind, vars(layer).get("forward"), attributes, given


def find_service(layer: nn.Module, call: Call) -> Service:
    """Find out how ``layer``, which is about to be called with ``call``, can be served.

    A layer that does not run torch's own forward function is tried on a copy, which leaves no trace in the layer.
    """
    if not isinstance(first_argument(layer, *call)[1], Tensor):
        return Service("ordinary", "its first argument is not a tensor")
    weight = current_weight(layer)
    if weight is None or not weight.is_floating_point():
        kind = "no tensor" if weight is None else "complex" if weight.is_complex() else f"of {weight.dtype}"
        return Service("ordinary", f"its weight is {kind}")
    if is_plain(layer):
        return Service("formula")
    random = RandomState.now(layer)
    try:
        # A checkpoint around the layer counts what is saved in it, and would find less in its second run.
        with own_graphs():
            return _Trial(layer, call, weight).service()
    except Exception as error:  # a forward of somebody else's, on inputs that it was not made for
        said = str(error).partition("\n")[0]
        return Service("ordinary", f"its forward could not be tried ({type(error).__name__}: {said})")
    finally:
        random.restore()


def current_weight(layer: nn.Module) -> Tensor | None:
    """Return the weight of ``layer`` without its graph; None if it has none. Reading it changes no state."""
    if is_computed(layer):
        twin = _copied(layer.parametrizations)  # type: ignore[arg-type]
        with torch.no_grad():
            weight = twin["weight"]()  # type: ignore[index]
    else:
        weight = getattr(layer, "weight", None)
    return weight.detach() if isinstance(weight, Tensor) else None


def function_gradient(layer: nn.Module, call: Call) -> InputGradient:
    """Return the gradient of the input of this ``call`` through the layer's own forward function, run with B."""
    name, given = first_argument(layer, *call)
    given, precisions = given.detach(), Autocast.now({"cpu", given.device.type})
    like = layer.weight.dtype if isinstance(layer.weight, Tensor) and not is_computed(layer) else None

    def gradient(grad: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        with precisions.restored():
            weight = weight.to(grad.device, like)
            return _pull_back(exchanged(layer, weight), with_first(call, name, given), name, grad)

    return outside_compiled_code(gradient)


def parameter_gradients(layer: nn.Module, call: Call, signal: Tensor) -> list[tuple[str, Tensor]]:
    """Return a layer's parameter gradients, by name, for a signal at its output, through its forward function."""
    twin = _copied(layer, hooked=False)
    learners = {name: p.detach().requires_grad_() for name, p in layer.named_parameters(recurse=False)
                if p.requires_grad}  # fmt: skip
    twin._parameters.update(learners)  # type: ignore[arg-type]
    args, kwargs = _detached(call)
    with torch.enable_grad():
        output = twin.forward(*args, **kwargs)
    found = torch.autograd.grad(output, list(learners.values()), signal.to(output), allow_unused=True)
    return [(name, gradient) for name, gradient in zip(learners, found, strict=True) if gradient is not None]


def _detached(call: Call) -> Call:
    args, kwargs = call
    plain: Callable[[Any], Any] = lambda entry: entry.detach() if isinstance(entry, Tensor) else entry  # noqa: E731
    return tuple(map(plain, args)), {name: plain(entry) for name, entry in kwargs.items()}


def _pull_back(twin: nn.Module, call: Call, name: str | None, grad: Tensor) -> Tensor:
    """Return J^T grad, J the derivative of ``twin`` by its first argument at ``call``."""
    call = _detached(call)
    _, given = first_argument(twin, *call)
    leaf = given.detach().requires_grad_()
    args, kwargs = with_first(call, name, leaf)
    with torch.enable_grad():
        output = twin.forward(*args, **kwargs)
        if not output.requires_grad:
            return torch.zeros_like(given)
        (found,) = torch.autograd.grad(output, leaf, grad.to(output), allow_unused=True)
    return torch.zeros_like(given) if found is None else found


# -- copies that run on another weight ---------------------------------------------------------------------------------


def exchanged(layer: nn.Module, weight: Tensor) -> nn.Module:
    """Return a copy of ``layer`` that runs on ``weight``, with state of its own and without the layer's hooks.

    A copy, because what another thread evaluates meanwhile must not see ``weight``.
    """
    twin = _copied(layer, hooked=False)
    if is_computed(layer):
        twin.__class__ = parametrize.type_before_parametrizations(layer)
        names = list(layer.parametrizations)  # type: ignore[arg-type]
        values = {name: weight if name == "weight" else getattr(layer, name).detach() for name in names}
        vars(twin).update(values)
    elif "weight" in twin._parameters:
        twin._parameters["weight"] = weight  # type: ignore[assignment]
    else:
        vars(twin)["weight"] = weight
    return twin


def _copied(module: nn.Module, *, hooked: bool = True) -> nn.Module:
    """Return a copy of ``module`` and its submodules: buffers and containers are copied, parameters are constants."""
    twin = object.__new__(type(module))
    for key, value in vars(module).items():
        vars(twin)[key] = _own(value, module, twin)
    vars(twin)["_parameters"] = {name: None if p is None else p.detach() for name, p in module._parameters.items()}
    vars(twin)["_buffers"] = {name: None if b is None else b.detach().clone() for name, b in module._buffers.items()}
    vars(twin)["_modules"] = {name: None if m is None else _copied(m) for name, m in module._modules.items()}
    if not hooked:
        for key in ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"):
            vars(twin)[key] = {}
    return twin


def _own(value: Any, module: nn.Module, twin: nn.Module) -> Any:
    """Return the copy's value of an attribute of the module: it shares nothing that both could change."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (list, dict, set, deque)):
        return copy.copy(value)
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if isinstance(value, MethodType) and value.__self__ is module:
        return MethodType(value.__func__, twin)
    if isinstance(value, partial):
        return partial(value.func, *(twin if entry is module else entry for entry in value.args), **value.keywords)
    return value


# -- what a layer is ---------------------------------------------------------------------------------------------------


class _Trial:
    """Tries what a layer's forward function is, on copies of the layer."""

    def __init__(self, layer: nn.Module, call: Call, weight: Tensor) -> None:
        self._layer, self._weight = layer, weight
        self._name, given = first_argument(layer, *call)
        self._x = given.detach().to(weight.dtype)
        self._call = _detached(call)
        self._grad = weight.new_empty(0)

    def service(self) -> Service:
        """Return the service that the trial has found."""
        with in_own_precision(self._weight), torch.no_grad():
            twin = exchanged(self._layer, self._weight)
            first, second = self._output(twin), self._output(twin)
            if not isinstance(first, Tensor) or not first.is_floating_point():
                found = f"a tensor of {first.dtype}" if isinstance(first, Tensor) else f"a {type(first).__name__}"
                return Service("ordinary", f"it returns {found}")
            if not _same(first, second):
                return Service("ordinary", "it draws random numbers or changes its own state when it runs")
            self._grad = torch.randn_like(first)
            return self._of_a_function()

    def _of_a_function(self) -> Service:
        exact = self._pulled(exchanged(self._layer, self._weight), self._x)
        if not all(_same(self._pulled(exchanged(self._layer, self._weight), x), exact) for x in self._other_inputs()):
            return Service("ordinary", "its output is not linear in its input")
        other = torch.randn_like(self._weight) * self._weight.abs().mean()
        if _same(self._pulled(exchanged(self._layer, other), self._x), exact):
            return Service("ordinary", "its 'weight' has no part in its input's gradient")
        return Service("formula" if self._is_formula() else "function")

    def _is_formula(self) -> bool:
        """Return whether the known gradient holds for other tensors too: adapters may begin at zero, masks at one."""
        twin = exchanged(self._layer, self._weight)
        for tensor in _tensors(twin):
            if tensor is self._weight:
                continue
            if tensor.is_floating_point():
                tensor.normal_()
            elif tensor.dtype == torch.bool:
                tensor.random_(0, 2)
        try:
            return _same(self._by_formula(), self._pulled(twin, self._x))
        except Exception:  # shapes that do not go together, for one
            return False

    def _by_formula(self) -> Tensor:
        with torch.enable_grad():
            leaf = self._x.detach().requires_grad_()
            delivered, gradient = input_gradient(self._layer, leaf)
            signal = gradient(self._grad, self._weight, delivered.shape)
            return signal if delivered is leaf else torch.autograd.grad(delivered, leaf, signal)[0]

    def _other_inputs(self) -> Iterator[Tensor]:
        size = self._x.abs().mean()
        for factor in (1, 100):
            yield torch.randn_like(self._x) * torch.where(size > 0, size, 1) * factor

    def _output(self, twin: nn.Module) -> Any:
        args, kwargs = with_first(self._call, self._name, self._x)
        return twin.forward(*args, **kwargs)

    def _pulled(self, twin: nn.Module, x: Tensor) -> Tensor:
        return _pull_back(twin, with_first(self._call, self._name, x), self._name, self._grad)


def _tensors(twin: nn.Module) -> Iterator[Tensor]:
    """Return every tensor of a copied module, made its own so that it can be written to."""
    for module in twin.modules():
        stores: list[dict[str, Any]] = [module._parameters, module._buffers, vars(module)]
        for store in stores:
            for name, value in store.items():
                if isinstance(value, Tensor) and not (module is twin and name == "weight"):
                    store[name] = value.clone()
                    yield store[name]


def precision(dtype: torch.dtype, device: torch.device) -> float:
    """Return the relative difference allowed between two computations of a number: 3/4 of the digits must agree."""
    # TF32 has ten bits.
    eps = 2.0**-10 if device.type == "cuda" and dtype == torch.float32 else float(torch.finfo(dtype).eps)
    return math.pow(eps, 0.75)


def _same(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    bound = precision(expected.dtype, expected.device)
    return bool((found - expected).norm() <= bound * torch.maximum(found.norm(), expected.norm()))
