"""Objects that do not change themselves, but contain places that do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bpfree.rerun.holders.base import Holder


class Unchanging(Holder):
    """An object that does not change itself, but contains places that do."""

    __slots__ = ()

    def copy(self) -> Any:
        """Copy nothing: there is nothing to put back."""

    def matches(self, kept: Any) -> bool:
        """Return True: it does not change."""
        return True

    def put(self, kept: Any) -> None:
        """Do nothing: there is nothing to put back."""


class Collection(Unchanging):
    """Several places."""

    __slots__ = ()

    def __init__(self, label: str, held: object, places: Sequence[Holder]) -> None:
        super().__init__(label, held)
        self.children = places


class Arguments(Unchanging):
    """The objects among the arguments of a pass, by the number or name of the argument."""

    __slots__ = ()

    @property
    def can_replace(self) -> bool:
        """False: they belong to the caller."""
        return False

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return pairs of an argument's number or name and the object."""
        return list(self.held.items())

    def name(self, key: Any) -> str:
        """Return the argument's name."""
        return f"argument {key!r}"


class Method(Unchanging):
    """A method of an object."""

    __slots__ = ()

    @property
    def can_replace(self) -> bool:
        """False: a method stays that of its object."""
        return False

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return the object and the function."""
        return [("object", self.held.__self__), ("function", self.held.__func__)]

    def name(self, key: Any) -> str:
        """Return the method's name: its parts have no names."""
        return self.label


class Fixed(Unchanging):
    """A tuple. To exchange an entry, the whole tuple is exchanged in the place that holds it."""

    __slots__ = ("_above", "_key")

    def __init__(self, label: str, held: tuple[Any, ...], above: Holder, key: Any) -> None:
        super().__init__(label, held)
        self._above, self._key = above, key

    @property
    def can_replace(self) -> bool:
        """True if the place that holds the tuple can hold another."""
        return self._above.can_replace

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return pairs of a position and the object there, of the tuple that the place holds now."""
        return list(enumerate(self._above.at(self._key)))

    def replace(self, key: Any, value: Any) -> None:
        """Put another tuple in its place, with ``value`` for the entry ``key``."""
        now = self._above.at(self._key)
        make: Any = getattr(type(now), "_make", type(now))  # a named tuple
        self._above.replace(self._key, make([*now[:key], value, *now[key + 1 :]]))
