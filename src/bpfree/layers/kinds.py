"""The known kinds of linear layers, and the gradients of their inputs and parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
import torch.nn.grad as convolution_gradients
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bpfree.axes.memory_format import format_of

Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TORCHS: tuple[type[nn.Module], ...] = (nn.Linear, *CONVOLUTIONS, *_TRANSPOSED)

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
_WEIGHT_GRADIENTS = (
    convolution_gradients.conv1d_weight,
    convolution_gradients.conv2d_weight,
    convolution_gradients.conv3d_weight,
)
_FORWARDS = (F.conv1d, F.conv2d, F.conv3d)

InputGradient: TypeAlias = Callable[[Tensor, Tensor, torch.Size], Tensor]
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


def _registered_kinds(layer: nn.Module) -> list[bool]:
    """Return, for every registered kind that ``layer`` is, whether W is (in, out); the most derived kind first."""
    return [_LINEAR[_path(kind)] for kind in type(layer).__mro__ if _path(kind) in _LINEAR]


def is_linear(layer: nn.Module) -> bool:
    """Return whether ``layer`` is of a known kind, or of a class derived from one, which may compute something else."""
    return isinstance(layer, _TORCHS) or bool(_registered_kinds(layer))


def is_computed(layer: nn.Module) -> bool:
    """Return whether a parametrization computes ``layer``'s weight: reading it may change a state there."""
    return parametrize.is_parametrized(layer, "weight")


def is_plain(layer: nn.Module) -> bool:
    """Return whether ``layer`` runs the forward function of torch's own class, on an ordinary tensor as weight."""
    if "forward" in vars(layer) or not (is_computed(layer) or type(layer.weight) in (nn.Parameter, Tensor)):
        return False
    return any(
        type(layer).forward is kind.forward
        and getattr(type(layer), "_conv_forward", None) is getattr(kind, "_conv_forward", None)
        for kind in _TORCHS
    )


def linear_part(layer: Any, kind: type) -> Callable[[Tensor], Tensor] | None:
    """Return what ``layer`` does to its input but for its bias; None if ``kind`` is not one of the known kinds itself.

    Args:
        layer: The layer.
        kind: Its class, before anybody has put another in its place, as FSDP2 does.
    """
    if kind is nn.Linear:
        return lambda input: F.linear(input, layer.weight)
    if kind in CONVOLUTIONS:
        return lambda input: layer._conv_forward(input, layer.weight, None)
    transposed = _LINEAR.get(_path(kind))
    if transposed is None:
        return None
    return lambda input: input @ (layer.weight if transposed else layer.weight.T)


def padded(layer: Convolution, input: Tensor) -> tuple[Tensor, int | tuple[int, ...]]:
    """Return ``layer``'s padded input, and the zeros that torch's gradient functions must still add on each side.

    Those functions know no other padding, so that what is not a plain number of zeros becomes part of the input.
    """
    if layer.padding == "valid":
        return input, 0
    if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return input, layer.padding
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(input, layer._reversed_padding_repeated_twice, mode=mode), 0


def input_gradient(layer: nn.Module, given: Tensor) -> tuple[Tensor, InputGradient]:
    """Return the tensor that gets the gradient of ``layer``'s input, and the function that makes it from B.

    The tensor is the input itself, or the padded input if the padding is not a plain number of zeros.
    """
    if type(layer) is nn.Linear:  # the usual case, without a search
        return given, _linear
    if isinstance(layer, _TRANSPOSED):
        return given, _transposed(layer)
    if not isinstance(layer, CONVOLUTIONS):
        return given, _linear_transposed if any(_registered_kinds(layer)[:1]) else _linear
    delivered, padding = padded(layer, given)
    return delivered, _convolution(layer, padding)


def _linear(grad: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    return grad.matmul(weight.to(grad))


def _linear_transposed(grad: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    return grad.matmul(weight.to(grad).T)


def _convolution(layer: Convolution, padding: Any) -> InputGradient:
    backward: Any = _INPUT_GRADIENTS[len(layer.kernel_size) - 1]

    def gradient(grad: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        if len(shape) == len(layer.kernel_size) + 1:  # no batch dimension, which the function of torch needs
            return gradient(grad[None], weight, torch.Size((1, *shape)))[0]
        # Torch asks the weight how the result shall lie, and is quicker where it lies as the gradient does.
        weight = weight.to(grad).to(memory_format=format_of(grad))
        found: Tensor = backward(shape, weight, grad, layer.stride, padding, layer.dilation, layer.groups)
        return found

    return gradient


def _transposed(layer: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) -> InputGradient:
    # The gradient of a transposed convolution's input is the plain convolution.
    forward: Any = _FORWARDS[len(layer.kernel_size) - 1]

    def gradient(grad: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        weight = weight.to(grad)
        found: Tensor = forward(grad, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        # An output_padding of a stride or more, which a dilation allows, leaves room for places that the input lacks.
        return found[tuple(slice(size) for size in shape)]

    return gradient


def matrices(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return ``weight``, of the shape of ``layer``'s, as the linear maps of one place: shape (groups, out, in).

    A view of ``weight`` where that is contiguous. For a convolution the place is one window of its input, in =
    channels of a group x kernel; for a transposed convolution it is one point, out = channels of a group x kernel.
    """
    if isinstance(layer, (*CONVOLUTIONS, *_TRANSPOSED)):
        grouped = weight.reshape(layer.groups, -1, *weight.shape[1:]).flatten(2)
        return grouped.mT if isinstance(layer, _TRANSPOSED) else grouped
    return (weight.T if any(_registered_kinds(layer)[:1]) else weight).unsqueeze(0)


def parameter_gradients(layer: Any, input: Tensor, signal: Tensor) -> list[tuple[str, Tensor]]:
    """Return the gradients of a plain Linear's or convolution's weight and bias for a signal at its output."""
    found: list[tuple[str, Tensor]] = []
    if not is_computed(layer) and layer.weight.requires_grad:
        dtype = layer.weight.dtype
        found.append(("weight", _weight_gradient(layer, input.to(dtype), signal.to(dtype))))
    if layer.bias is not None and layer.bias.requires_grad:
        channel = signal.dim() - 1 if isinstance(layer, nn.Linear) else 1
        found.append(("bias", signal.to(layer.bias.dtype).sum([d for d in range(signal.dim()) if d != channel])))
    return found


def _weight_gradient(layer: Any, input: Tensor, signal: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return signal.reshape(-1, layer.out_features).T @ input.reshape(-1, layer.in_features)
    input, padding = padded(layer, input)
    backward: Any = _WEIGHT_GRADIENTS[len(layer.kernel_size) - 1]
    gradient: Tensor = backward(input, layer.weight.shape, signal, layer.stride, padding, layer.dilation, layer.groups)
    return gradient
