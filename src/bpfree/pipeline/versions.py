"""Weights as a forward pass used them, for a backward pass that comes after the next update."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import Tensor, nn

from bpfree.rerun.own_graphs import with_version
from bpfree.rerun.saved_tensors import hooked_saved_tensors


class Versions:
    """Copies a weight before an update only if a graph still needs it as it is.

    A segment that is one layer needs no weight for its own backward pass, and nothing is copied.

    Args:
        module: The module that holds the weights.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._in_use: WeakSet[_Saved] = WeakSet()

    @contextmanager
    def recorded(self) -> Generator[None]:
        """Return a context for a forward pass whose graph may outlive an update."""
        # Asked for anew: a weight may have moved to other memory since the last pass.
        storages = {_address(parameter) for parameter in self._module.parameters()}

        def pack(tensor: Tensor) -> _Saved:
            saved = _Saved(tensor)
            if _address(tensor) in storages:
                self._in_use.add(saved)
            return saved

        with hooked_saved_tensors(pack, _Saved.unpacked):
            yield

    def keep(self) -> None:
        """Copy what graphs still need; call it before every update."""
        copies: dict[int, torch.UntypedStorage] = {}
        for weight in list(self._in_use):
            weight.keep(copies)
        self._in_use.clear()


class _Saved:
    """A tensor in a graph, and the version that it had: autograd does not look at it where hooks save tensors."""

    def __init__(self, tensor: Tensor) -> None:
        # Detached, or an operation that saves its own output holds itself: see own_graphs.with_version.
        self._tensor, self._version = with_version(tensor)

    def keep(self, copies: dict[int, torch.UntypedStorage]) -> None:
        """Let the tensor be of a copy, one for all views of a weight."""
        view = self.unpacked()
        storage = view.untyped_storage()
        if storage.data_ptr() not in copies:
            copies[storage.data_ptr()] = storage.clone()  # type: ignore[no-untyped-call]
        copy = copies[storage.data_ptr()]
        self._tensor = view.new_empty(0).set_(copy, view.storage_offset(), view.size(), view.stride())
        self._version = self._tensor._version

    def unpacked(self) -> Tensor:
        """Return the tensor as it was saved.

        Raises:
            RuntimeError: An in-place operation has changed it, as autograd says it.
        """
        tensor = self._tensor
        if tensor._version != self._version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"[{tensor.type()} {list(tensor.shape)}] is at version {tensor._version}; expected version "
                f"{self._version} instead."
            )
        return tensor


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
