"""The mechanism of the layerwise rules: backward weights for linear and convolution layers.

A forward pre-hook detaches the layer's input, so that autograd never forms W^T delta; a forward hook joins the
output to that input again through :class:`Join`, whose gradient uses B. Weight and bias keep their exact local
gradients.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
import torch.nn.grad as convolution_gradients
from torch import Tensor, nn

from bpfree.convolution import CONVOLUTIONS, Convolution, padded
from bpfree.draw import derived_seed
from bpfree.errors import StateError, UnsupportedLayerError
from bpfree.mechanisms.base import Mechanism, Rule
from bpfree.mechanisms.once import once
from bpfree.memory_format import format_of
from bpfree.plan import Plan
from bpfree.state import LateBuffers, at_least_single, name_of
from bpfree.tabulate import others

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
SERVED: tuple[type[nn.Module], ...] = (nn.Linear, *CONVOLUTIONS, *_TRANSPOSED)
"""The layers of torch that a layerwise rule gives backward weights."""

_LINEAR = {
    "torch_geometric.nn.dense.linear.Linear": False,
    "transformers.pytorch_utils.Conv1D": True,
}
"""Linear layers that are not torch's, by import path, so that nobody has to import them: whether W is (in, out)."""

_INPUT_GRADIENTS = (
    convolution_gradients.conv1d_input,
    convolution_gradients.conv2d_input,
    convolution_gradients.conv3d_input,
)
_FORWARDS = (F.conv1d, F.conv2d, F.conv3d)

InputGradient = Callable[[Tensor, Tensor, torch.Size], Tensor]
"""(gradient of the output, B, shape of the input) -> signal for the input."""


def serve_layer(layer: type[nn.Module], *, transposed: bool = False) -> None:
    """Let layerwise rules give backward weights to a kind of linear layer that is not derived from ``nn.Linear``.

    Known already: the ``Linear`` of torch_geometric and the ``Conv1D`` of transformers.

    Args:
        layer: The class. Its ``forward(x)`` maps the last dimension of one tensor by its parameter ``weight``, and may
            add a bias: ``x @ weight.T``.
        transposed: ``x @ weight`` instead.
    """
    _LINEAR[_path(layer)] = transposed


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _linear_kinds(layer: nn.Module) -> list[bool]:
    """Of the registered kinds that ``layer`` is, whether W is (in, out); the most derived first."""
    return [_LINEAR[_path(kind)] for kind in type(layer).__mro__ if _path(kind) in _LINEAR]


@dataclass(frozen=True)
class LayerwiseRule(Rule):
    """A rule whose linear and convolution layers pass the error down through B in place of W.

    Not backward-unlocked: a layer waits for the one above. Layers of other kinds pass their ordinary gradient.
    A rule of your own overrides :meth:`draw` and :meth:`backward_weight`.
    """

    def mechanism(self, plan: Plan) -> Mechanism:
        """Join every layer to its input through a function whose gradient uses B."""
        return AsymmetricMechanism(self, plan)

    @property
    def redraws(self) -> bool:
        """Whether B is drawn anew in every forward pass."""
        return False

    @abstractmethod
    def draw(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """What is kept, and saved, for one layer; drawn once."""

    def backward_weight(self, weight: Tensor, kept: Tensor, generator: Callable[[], torch.Generator]) -> Tensor:
        """B, of ``weight``'s shape, for the backward pass of one forward pass; what was kept, unless overridden.

        ``generator()`` is one seeded for this layer and forward pass, for rules that draw anew.
        """
        return kept


class Join(torch.autograd.Function):
    """Identity on a layer's output; in backward the layer's input receives a signal made with B."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, input: Tensor, weight: Callable[[], Tensor], rule: InputGradient) -> Tensor:
        """Return ``output``; of ``input`` only its shape and its place in the graph are kept."""
        ctx.weight, ctx.rule, ctx.shape, ctx.format = weight, rule, input.shape, format_of(input)
        # A tensor of its own, so that an in-place non-linearity may follow (see Broadcast).
        return output.detach()

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient itself for the layer, B's for what lies below."""
        (grad,) = grads
        signal = ctx.rule(grad, ctx.weight().to(grad), ctx.shape).to(memory_format=ctx.format)
        return grad, signal, None, None


class AsymmetricMechanism(Mechanism):
    """Hooks and backward weights of one layerwise rule on one model.

    ``feedback[name]`` is what the rule keeps for the layer ``name``; there is none for a layer whose input needs no
    gradient, such as the first.
    """

    rule: LayerwiseRule
    learns = False
    """Whether B takes steps, which may be small beside it."""

    def __init__(self, rule: LayerwiseRule, plan: Plan) -> None:
        super().__init__(rule, plan)
        self._layers = {
            name: module
            for name, module in plan.model.named_modules()
            if isinstance(module, SERVED) or _linear_kinds(module)
        }
        if not self._layers:
            raise UnsupportedLayerError(
                f"{type(rule).__name__} gives backward weights to Linear and convolution layers, and the model has "
                "none. Use a direct rule (bpfree.DFA) or backpropagation; bpfree.serve_layer() makes a linear layer of "
                "your own known."
            )
        self.feedback = LateBuffers(seed=plan.seed, passes=0)
        self._inputs: dict[str, Tensor] = {}
        self._called: set[str] = set()
        # Layers above the error's place, which learn exactly; whether a pass is under way, and has got there.
        self._exact: set[str] = set()
        self._inside = self._above = False

    def install(self) -> None:
        """Put a pair of hooks on every served layer, and mark where a pass begins, leaves its error and ends."""
        add = self._handles.append
        add(self.plan.model.register_forward_pre_hook(self._begin))
        for name, layer in self._layers.items():
            add(layer.register_forward_pre_hook(partial(self._cut, name), with_kwargs=True))
            add(layer.register_forward_hook(partial(self._join, name)))
        add(self.plan.error_module.register_forward_hook(self._leave))
        add(self.plan.model.register_forward_hook(self._end, always_call=True))

    def remove(self) -> None:
        """Take the hooks out."""
        super().remove()
        self._inputs.clear()

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._inputs.clear()
        self._inside, self._above = True, False
        if not self.recomputing():  # a second run may end where the error is taken
            self._exact = set()
        if self.active and self.rule.redraws and not self.recomputing():
            self.feedback.numbers["passes"] += 1

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._above = self._inside

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._inside = self._above = False

    def _is_exact(self, name: str) -> bool:
        """Whether a layer that is called lies above the error's place."""
        if not self._inside:  # a checkpoint's second run of a part: as in the last pass
            return name in self._exact
        if self._above:
            self._exact.add(name)
        return self._above

    def _cut(self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._is_exact(name) or not self.active:
            return None
        self._called.add(name)
        key = "input" if "input" in kwargs else next(iter(kwargs), "")
        given = args[0] if args else kwargs[key]
        if not given.requires_grad:
            return None
        self._inputs[name] = given
        if args:
            return (given.detach(), *args[1:]), kwargs
        return args, {**kwargs, key: given.detach()}

    def _join(self, name: str, layer: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        given = self._inputs.pop(name, None)
        if given is None:
            return None
        delivered, gradient = input_gradient(layer, given)
        result: Tensor = Join.apply(output, delivered, self._backward_weight(name, layer), gradient)  # type: ignore[no-untyped-call]
        return result

    def _backward_weight(self, name: str, layer: nn.Module) -> Callable[[], Tensor]:
        weight = cast(nn.Linear, layer).weight.detach()
        if name not in self.feedback:
            self._draw(name, weight)
        kept, passes = self.feedback[name], self.feedback.numbers["passes"]

        def generator() -> torch.Generator:
            seed = derived_seed(self.feedback.numbers["seed"], name, passes)
            return torch.Generator(weight.device).manual_seed(seed)

        def at_backward() -> Tensor:
            B = self.rule.backward_weight(weight, kept, generator)
            if B.shape != weight.shape:
                raise StateError(
                    f"the backward weights of layer {name!r} have shape {tuple(B.shape)}, its weights "
                    f"{tuple(weight.shape)}: a loaded state is that of another model, or the rule drew another shape."
                )
            return B

        return at_backward

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        start = f"{prefix}feedback."
        saved = {name_of(key.removeprefix(start)) for key in state_dict if key.startswith(start)}
        unknown = saved - self._layers.keys() - self.feedback.numbers.keys()
        if unknown:
            raise StateError(f"the state is for layers that this model does not have: {', '.join(sorted(unknown))}.")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _draw(self, name: str, weight: Tensor) -> None:
        # On the CPU, so that every machine draws the same; once.
        generator = torch.Generator().manual_seed(derived_seed(self.feedback.numbers["seed"], name))
        like = at_least_single(weight) if self.learns else weight
        self.feedback[name] = self.rule.draw(weight, generator).to(like)

    def table(self) -> tuple[list[str], list[list[str]], list[str]]:
        """A row for each served layer; the layers that pass ordinary gradients are remarked on."""
        rows = [[name, type(layer).__name__, self._state(name)] for name, layer in self._layers.items()]
        ordinary = ", ".join(sorted(others(self.plan.model, self._layers)))
        remarks = [f"Ordinary gradients pass through {ordinary}."] if ordinary else []
        return ["layer", "kind", "backward weights"], rows, remarks

    def _state(self, name: str) -> str:
        if name in self.feedback:
            return " x ".join(map(str, self.feedback[name].shape)) or "magnitude and signs of W"
        if name in self._exact:
            return "none: it lies above the error and learns exactly"
        if name in self._called:
            return "none: its input needs no gradient"
        return "not called as a module: ordinary gradients" if self._called else "drawn in the first forward pass"


def input_gradient(layer: nn.Module, given: Tensor) -> tuple[Tensor, InputGradient]:
    """How ``layer``'s input gets its gradient from B: the tensor it is delivered to, and the function.

    The tensor is the input itself, or the padded input where the padding is not a plain number of zeros.
    """
    if isinstance(layer, _TRANSPOSED):
        return given, _transposed(layer)
    if not isinstance(layer, CONVOLUTIONS):
        return given, _linear_transposed if any(_linear_kinds(layer)[:1]) else _linear
    delivered, padding = padded(layer, given)
    return delivered, _convolution(layer, padding)


def _linear(grad: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    return grad.matmul(weight)


def _linear_transposed(grad: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    return grad.matmul(weight.T)


def _convolution(layer: Convolution, padding: Any) -> InputGradient:
    backward: Any = _INPUT_GRADIENTS[len(layer.kernel_size) - 1]

    def gradient(grad: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        if len(shape) == len(layer.kernel_size) + 1:  # no batch dimension, which the function of torch needs
            return gradient(grad[None], weight, torch.Size((1, *shape)))[0]
        # Torch asks the weight how the result shall lie, and is quicker where it lies as the gradient does.
        weight = weight.to(memory_format=format_of(grad))
        found: Tensor = backward(shape, weight, grad, layer.stride, padding, layer.dilation, layer.groups)
        return found

    return gradient


def _transposed(layer: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) -> InputGradient:
    # The gradient of a transposed convolution's input is the plain convolution.
    forward: Any = _FORWARDS[len(layer.kernel_size) - 1]

    def gradient(grad: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        found: Tensor = forward(grad, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        # An output_padding of a stride or more, which a dilation allows, leaves room for places that the input lacks.
        return found[tuple(slice(size) for size in shape)]

    return gradient


def matrices(layer: nn.Module, weight: Tensor) -> Tensor:
    """``weight``, of the shape of ``layer``'s, as the linear maps of one place: shape (groups, out, in).

    A view of ``weight`` where that is contiguous. For a convolution the place is one window of its input, in =
    channels of a group x kernel; for a transposed convolution it is one point, out = channels of a group x kernel.
    """
    if isinstance(layer, (*CONVOLUTIONS, *_TRANSPOSED)):
        grouped = weight.reshape(layer.groups, -1, *weight.shape[1:]).flatten(2)
        return grouped.mT if isinstance(layer, _TRANSPOSED) else grouped
    return (weight.T if any(_linear_kinds(layer)[:1]) else weight).unsqueeze(0)
