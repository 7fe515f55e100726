"""Forward derivatives by hand, where torch has none or a slow one.

Fused attention has none. Where an operation meets a constant, torch adds the product with the constant's tangent, a
tensor of zeros; it decomposes that in Python, up to 570 calls an operation, which takes longer than a small operation.

torch's own switches for attention (``sdpa_kernel``, ``torch.backends.mha``) are the process's: a thread that evaluates
a model meanwhile would get other roundings. What is called in this thread alone is exchanged here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree.forward_mode.attention import multi_head, scaled_dot_product
from bpfree.forward_mode.dual_numbers import join, split
from bpfree.forward_mode.grad_mode import PassMode

_WITH_FAST_PATH = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


def derivatives_by_hand(parts: Iterable[nn.Module], *, attention: bool) -> AbstractContextManager[Any]:
    """Within this context, and this thread, operations on dual numbers take the derivatives of this module.

    Looking at every operation takes time of its own: a model without normalization or attention is left alone.

    Args:
        parts: The modules of the model that is run.
        attention: True if the model is known to run attention.
    """
    if attention or any(isinstance(module, (nn.LayerNorm, *_WITH_FAST_PATH)) for module in parts):
        return ByHand()
    return nullcontext()


class ByHand(PassMode):
    """Operations with a derivative by hand; torch does not take attention's fast paths where there is such a mode."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``, or what stands for it."""
        kwargs = kwargs or {}
        derivative = _DERIVATIVES.get(func)
        found = NotImplemented if derivative is None else derivative(func, *args, **kwargs)
        return func(*args, **kwargs) if found is NotImplemented else found


def _parts(number: Any) -> tuple[Any, Tensor | None]:
    """Return a dual number's value and its tangent; a constant and None."""
    if not isinstance(number, Tensor):
        return number, None
    value, tangent = split(number)
    return (number, None) if tangent is None else (value, tangent)


def _is_constant(*numbers: Any) -> bool:
    return all(_parts(number)[1] is None for number in numbers)


def _scaled(func: Any, *args: Any, **options: Any) -> Any:
    """A product or quotient of a dual number and a constant."""
    if options or len(args) != 2:
        return NotImplemented
    (left, of_left), (right, of_right) = map(_parts, args)
    if of_left is not None and of_right is None:
        return join(func(left, right), func(of_left, right))
    if of_left is None and of_right is not None and func not in _QUOTIENTS:
        return join(func(left, right), func(left, of_right))
    return NotImplemented


def _shifted(func: Any, *args: Any, **options: Any) -> Any:
    """A dual number, plus or minus a constant."""
    if options or len(args) != 2:
        return NotImplemented
    value, tangent = _parts(args[0])
    if tangent is None or not _is_constant(args[1]):
        return NotImplemented
    found = func(value, args[1])
    if found.shape != tangent.shape or found.dtype != tangent.dtype:
        return NotImplemented
    return join(found, tangent.clone())  # an in-place operation on one must not reach the other


def _affine(func: Any, input: Any, weight: Any, bias: Any = None) -> Any:
    value, tangent = _parts(input)
    if tangent is None or not _is_constant(weight, bias):
        return NotImplemented
    return join(func(value, weight, bias), func(tangent, weight))


def _addmm(func: Any, *args: Any, **options: Any) -> Any:
    if options or len(args) != 3:
        return NotImplemented
    bias, input, weight = args
    value, tangent = _parts(input)
    if tangent is None or not _is_constant(weight, bias):
        return NotImplemented
    return join(func(bias, value, weight), tangent @ weight)


def _dropped(func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    value, tangent = split(input)
    if tangent is None or not training or not p or inplace:
        return NotImplemented
    kept = func(torch.ones_like(value), p)
    return join(value * kept, tangent * kept)


def _normalized(
    func: Any,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """Layer normalization, of whose input alone there is a tangent."""
    value, tangent = split(input)
    if tangent is None or not _is_constant(weight, bias):
        return NotImplemented
    if value.requires_grad:  # the mean and the deviation come without a graph
        return NotImplemented
    output, mean, inverse = torch.native_layer_norm(value, list(normalized_shape), weight, bias, eps)
    over = tuple(range(-len(normalized_shape), 0))
    normal = (value - mean) * inverse
    change = tangent - tangent.mean(over, keepdim=True) - normal * (normal * tangent).mean(over, keepdim=True)
    change = change * inverse if weight is None else change * inverse * weight
    return join(output, change.to(output.dtype))


_QUOTIENTS = {torch.div, Tensor.div, torch.true_divide, Tensor.true_divide}
_DERIVATIVES: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: lambda func, *args, **options: scaled_dot_product(*args, **options),
    F.multi_head_attention_forward: lambda func, *args, **options: multi_head(*args, **options),
    F.layer_norm: _normalized,
    F.dropout: _dropped,
    F.linear: _affine,
    torch.addmm: _addmm,
    **dict.fromkeys([torch.mul, Tensor.mul, *_QUOTIENTS], _scaled),
    **dict.fromkeys([torch.add, Tensor.add, torch.sub, Tensor.sub], _shifted),
}
