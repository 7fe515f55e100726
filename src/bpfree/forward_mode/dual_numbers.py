"""Dual numbers: a value and its tangent in one tensor."""

from __future__ import annotations

import torch
import torch.autograd.forward_ad as dual
from torch import Tensor


def split(number: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return a dual number's value and its tangent; None for an ordinary tensor."""
    if dual._current_level < 0:
        return number, None
    # What torch's own unpack_dual() calls, several times as quick: it looks for an export and builds a named tuple.
    primal, tangent = torch._VF._unpack_dual(number, level=0)
    return primal, tangent


def has_tangent(value: object) -> bool:
    """Return whether a value is a dual number."""
    return isinstance(value, Tensor) and split(value)[1] is not None


def join(primal: Tensor, tangent: Tensor) -> Tensor:
    """Return the dual number of this value and this tangent, within :data:`~.dual_level.dual_level`."""
    number: Tensor = torch._VF._make_dual(primal, tangent, level=0)
    return number
