"""Objects whose state can be read and set: generators of random numbers and numpy arrays."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from bpfree.rerun.holders.base import Holder


class Numbers(Holder):
    """A generator of random numbers or a numpy array: an object whose state can be read and set.

    Args:
        label: Its name.
        held: The object.
        get: Returns the state.
        put: Sets the state.
    """

    __slots__ = ("_get", "_set")

    def __init__(self, label: str, held: object, get: Any, put: Any) -> None:
        self._get, self._set = get, put
        super().__init__(label, held)

    def copy(self) -> Any:
        """Copy its state."""
        return self._get()

    def matches(self, kept: Any) -> bool:
        """Return whether it has this state."""
        now = self._get()
        if isinstance(now, Tensor):
            return torch.equal(now, kept)
        return isinstance(now, tuple | bytes) and bool(now == kept)

    def put(self, kept: Any) -> None:
        """Set this state."""
        self._set(kept)


def array_holder(label: str, array: Any) -> Numbers:
    """Return the place of a numpy array."""
    shape, dtype = array.shape, array.dtype

    def put(kept: bytes) -> None:
        array[...] = sys.modules["numpy"].frombuffer(kept, dtype).reshape(shape)

    return Numbers(label, array, array.tobytes, put)
