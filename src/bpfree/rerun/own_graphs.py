"""Graphs that the library makes beside the user's pass, also where the whole model is inside a checkpoint.

A checkpoint counts every tensor that is saved within it, and expects the same tensors from its second run. The first
look at a model and an estimating pass happen in its first run only: the tensors that they save must not be counted.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class OverwrittenError(RuntimeError):
    """A tensor that a graph needs was changed in place: the user's own backward pass will say so."""


def with_version(tensor: Tensor) -> tuple[Tensor, int]:
    """Return a tensor with its version (the count of writes to it): autograd does not check it where there are hooks.

    The tensor is detached: an operation that saves its own output would otherwise hold itself, and would stay in memory
    forever if no gradient ever reached it. When the tensor is unpacked, autograd gives it its place in the graph again.
    """
    return tensor.detach(), tensor._version


def of_version(saved: tuple[Tensor, int]) -> Tensor:
    """Return the saved tensor; raise OverwrittenError if it has been written to since."""
    tensor, version = saved
    if tensor._version != version:
        raise OverwrittenError("a tensor that is needed for a gradient was changed in place.")
    return tensor


_NO_HOOKS = nullcontext()


def own_graphs() -> AbstractContextManager[None]:
    """Return a context within which graphs keep their own saved tensors, also inside a checkpoint."""
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is None:  # nothing counts; torch.func wants no hooks
        return _NO_HOOKS
    return saved_tensors_hooks(with_version, of_version)
