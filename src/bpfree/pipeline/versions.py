"""Weights as a forward pass used them, for a backward pass that comes after the next update."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class Versions:
    """Copies a weight before an update only if a graph still needs it as it is.

    A segment that is one layer needs no weight for its own backward pass, and nothing is copied.

    Args:
        module: What holds the weights.
    """

    def __init__(self, module: nn.Module) -> None:
        self._storages = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        self._in_use: WeakSet[_Weight] = WeakSet()

    def recorded(self) -> AbstractContextManager[Any]:
        """A context for a forward pass whose graph may outlive an update."""
        return saved_tensors_hooks(self._pack, _unpack)

    def keep(self) -> None:
        """Copy what graphs still need; call it before every update."""
        copies: dict[int, torch.UntypedStorage] = {}
        for weight in list(self._in_use):
            weight.keep(copies)
        self._in_use.clear()

    def _pack(self, saved: Tensor) -> Tensor | _Weight:
        if saved.untyped_storage().data_ptr() not in self._storages:
            return saved
        weight = _Weight(saved)
        self._in_use.add(weight)
        return weight


class _Weight:
    """A view of a weight in a graph."""

    def __init__(self, view: Tensor) -> None:
        self.view = view.detach()

    def keep(self, copies: dict[int, torch.UntypedStorage]) -> None:
        """Let the view be of a copy, one for all views of a weight."""
        storage = self.view.untyped_storage()
        if storage.data_ptr() not in copies:
            copies[storage.data_ptr()] = storage.clone()  # type: ignore[no-untyped-call]
        copy = copies[storage.data_ptr()]
        view = self.view
        self.view = view.new_empty(0).set_(copy, view.storage_offset(), view.size(), view.stride())


def _unpack(packed: Any) -> Tensor:
    if isinstance(packed, _Weight):
        return packed.view
    tensor: Tensor = packed
    return tensor
