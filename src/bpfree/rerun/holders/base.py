"""A place that keeps things: what all kinds have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

ABSENT = object()
"""Stands in a copy for an attribute or a variable that is not there."""


class Holder(ABC):
    """A place that keeps things.

    Attributes:
        label: Its name for messages, ``"router"`` or ``"history"``; "" is the model itself.
        held: The object that keeps the things.
        kept: A copy of what it held when it was last looked at.
        children: The places inside it.
        tensors: The tensors in it by key, parameters left out.
    """

    __slots__ = ("children", "held", "kept", "label", "tensors")

    def __init__(self, label: str, held: Any) -> None:
        self.label, self.held = label, held
        self.kept: Any = self.copy()
        self.children: Sequence[Holder] = ()
        self.tensors: Sequence[tuple[Any, Tensor]] = ()

    @abstractmethod
    def copy(self) -> Any:
        """Copy what it holds now."""

    @abstractmethod
    def matches(self, kept: Any) -> bool:
        """Return whether it holds the objects of this copy."""

    @abstractmethod
    def put(self, kept: Any) -> None:
        """Make it hold the objects of this copy."""

    def is_known(self) -> bool:
        """Return whether its hooks and submodules, if it has any, are those of the last look."""
        return True

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return pairs of a key and the object there."""
        return ()

    @property
    def can_replace(self) -> bool:
        """True if an entry can be replaced."""
        return True

    def at(self, key: Any) -> Any:
        """Return the entry ``key``."""
        return next(value for place, value in self.entries() if place is key or place == key)

    def replace(self, key: Any, value: Any) -> None:
        """Put ``value`` in the place of the entry ``key``."""
        raise KeyError(key)

    def name(self, key: Any) -> str:
        """Return the entry's name for messages: ``"router.balance"`` or ``"history[0]"``."""
        return f"{self.label}[{key!r}]"
