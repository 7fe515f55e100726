"""The axis of a tensor's channels, read from the graph that made the tensor.

After a convolution, a pooling or a batch normalization the channels are axis 1; after a product with weights, an
embedding or a layer normalization they are the last axis. Operations on single elements do not change this; views and
transpositions are followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

_SECOND = (
    "Convolution", "NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "NativeGroupNorm", "MaxPool", "AvgPool",
    "AdaptiveAvgPool", "AdaptiveMaxPool", "FractionalMaxPool", "MkldnnAdaptiveAvgPool", "Upsample", "PixelShuffle",
    "PixelUnshuffle",
)  # fmt: skip
_LAST = (
    "Addmm", "Linear", "Embedding", "FusedRmsNorm", "MkldnnRnnLayer", "CudnnRnn", "MiopenRnn", "ThnnFused",
)  # fmt: skip
_PRODUCTS = ("Mm", "Bmm", "SparseMm", "SparseAddmm")
_VIEWS = ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze")
_OF_WEIGHTS = ("T", "Transpose", "Permute", "View", "Expand", "ToCopy", "ReshapeAlias", "Unsqueeze")
_AFFORDABLE = 2000
"""The largest number of the graph's nodes that are looked at."""

Step = tuple[Any, tuple[int, ...], tuple["int | None", ...]]
"""A node, the shape of what it made, and where in the tensor asked about each of its axes lies."""


def channel_axis(tensor: Tensor) -> int | None:
    """Return the axis of the channels, -1 for the last one; None where the graph does not say so, or there is none.

    -1 and not its number: the same layer is the last one's for tensors of any number of axes.
    """
    node = tensor.grad_fn
    if node is None:
        return None
    waiting: list[Step] = [(node, tuple(tensor.shape), tuple(range(tensor.dim())))]
    seen: set[Any] = set()
    while waiting and len(seen) < _AFFORDABLE:
        step = waiting.pop()
        if step[0] in seen:
            continue
        seen.add(step[0])
        said = _said(step)
        if said is not None:
            return -1 if said == tensor.dim() - 1 else said
        waiting += reversed(list(_below(step)))
    return None


def _said(step: Step) -> int | None:
    """Return the axis that a node says is the channels."""
    node, shape, places = step
    kind = _kind(node)
    if len(shape) < 2:
        return None
    if kind.startswith(_SECOND):
        return places[1]
    if kind.startswith(_LAST) or (kind == "NativeLayerNorm" and len(node._saved_normalized_shape) == 1):
        return places[-1]
    if kind in _PRODUCTS:
        *_, left, right = (following for following, _ in node.next_functions)
        if _is_weight(right):
            return places[-1]
        if _is_weight(left):
            return places[-2]
    return None


def _is_weight(node: Any) -> bool:
    """Return whether a factor is a parameter, or a view of one, as linear layers make it."""
    if node is not None and _kind(node) == "T":
        return True
    while node is not None and not hasattr(node, "variable") and _kind(node) in _OF_WEIGHTS:
        node = node.next_functions[0][0]
    return hasattr(node, "variable")


def _below(step: Step) -> Iterator[Step]:
    """Return the nodes that made a node's inputs: first those whose shape is the same."""
    node, shape, _ = step
    found = []
    for number, (following, place) in enumerate(node.next_functions):
        metadata = getattr(following, "_input_metadata", ())
        if len(metadata) > place and not hasattr(following, "variable"):
            below = tuple(metadata[place].shape)
            found.append((following, below, _places(step, number, below)))
    return iter(sorted(found, key=lambda step: step[1] != shape))


def _places(step: Step, number: int, below: tuple[int, ...]) -> tuple[int | None, ...]:
    """Return, for each axis of a node's input, its place in the tensor that was asked about."""
    node, shape, places = step
    kind, gone = _kind(node), len(below) - len(shape)
    if kind == "T" or kind.startswith("Transpose"):
        return _transposed(node, kind, places)
    if kind == "Permute":
        axes = [_axis(axis, len(shape)) for axis in node._saved_dims]
        return tuple(places[axes.index(axis)] for axis in range(len(below)))
    if kind.startswith(_VIEWS):
        return tuple(_through_a_view(axis, below, shape, places) for axis in range(len(below)))
    if kind in _PRODUCTS:
        is_left = number == len(node.next_functions) - 2
        return (*places[:-1], None) if is_left else (*places[:-2], None, places[-1])
    if kind == "Stack":
        at = _axis(node._saved_dim, len(shape))
        return (*places[:at], *places[at + 1 :])
    if gone > 0:
        return _reduced(node, gone, places, len(below))
    return places[-gone:] if gone else places


def _transposed(node: Any, kind: str, places: tuple[int | None, ...]) -> tuple[int | None, ...]:
    first, second = (0, len(places) - 1) if kind == "T" else (
        _axis(node._saved_dim0, len(places)), _axis(node._saved_dim1, len(places))
    )  # fmt: skip
    swapped = list(places)
    swapped[first], swapped[second] = places[second], places[first]
    return tuple(swapped)


def _through_a_view(
    axis: int, below: Sequence[int], above: Sequence[int], places: tuple[int | None, ...]
) -> int | None:
    """Return the places of axes after a view: an axis stays whole if its length and the count before it stay."""
    before = 1
    for size in below[:axis]:
        before *= size
    counted = 1
    for number, size in enumerate(above):
        if counted == before and size == below[axis]:
            return places[number]
        counted *= size
    return None


def _reduced(node: Any, gone: int, places: tuple[int | None, ...], dims: int) -> tuple[int | None, ...]:
    """Return the places after a sum, a mean or a selection has removed axes."""
    said = getattr(node, "_saved_dim", None)
    taken = () if said is None else said if isinstance(said, tuple | list) else (said,)
    axes = {_axis(axis, dims) for axis in taken}
    if len(axes) != gone:
        return (None,) * dims
    left = iter(places)
    return tuple(None if axis in axes else next(left) for axis in range(dims))


def _kind(node: Any) -> str:
    """Return a node's name without the ``Backward0`` behind it."""
    name: str = node.name()
    return name.partition("Backward")[0]


def _axis(said: int, dims: int) -> int:
    # A negative number is saved as an unsigned one.
    return (said - 2**64 if said >= 2**63 else said) % dims
