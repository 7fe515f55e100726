"""Containers whose entries a pass may change: dictionaries, lists, deques, sets and bytearrays."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from operator import is_
from typing import Any

from bpfree.rerun.holders.base import Holder

MANY = 1000
"""Containers of more entries are watched by their length and their ends, and their entries are not looked into."""


class Entries(Holder):
    """A dictionary."""

    __slots__ = ("_kind",)

    def __init__(self, label: str, held: dict[Any, Any]) -> None:
        # What a subclass does when it is read or written to belongs to the pass, and not to us.
        self._kind: Any = OrderedDict if isinstance(held, OrderedDict) else dict
        super().__init__(label, held)

    def copy(self) -> Any:
        """Copy what it holds now."""
        return list(self._kind.items(self.held))

    def matches(self, kept: Any) -> bool:
        """Return whether it holds the objects of this copy."""
        now = self.held
        if len(now) != len(kept):
            return False
        if len(now) > MANY:
            last = next(reversed(now))
            return last is kept[-1][0] and dict.__getitem__(now, last) is kept[-1][1]
        pairs = zip(self._kind.items(now), kept, strict=True)
        return all(key is known and value is before for (key, value), (known, before) in pairs)

    def put(self, kept: Any) -> None:
        """Make it hold the objects of this copy, in their order."""
        self._kind.clear(self.held)
        for key, value in kept:
            self._kind.__setitem__(self.held, key, value)

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return pairs of a key and the object there."""
        return list(self._kind.items(self.held))

    def at(self, key: Any) -> Any:
        """Return the entry ``key``."""
        return self._kind.__getitem__(self.held, key)

    def replace(self, key: Any, value: Any) -> None:
        """Put ``value`` in the place of the entry ``key``."""
        self._kind.__setitem__(self.held, key, value)


class RuleBuffers(Entries):
    """The buffers of a learning rule's module: those that are drawn later stay."""

    __slots__ = ()

    def put(self, kept: Any) -> None:
        """Put the buffers of this copy back."""
        self.held.update(kept)


class Items(Holder):
    """A list or a deque."""

    __slots__ = ()

    def copy(self) -> Any:
        """Copy what it holds now."""
        return list(self.held)

    def matches(self, kept: Any) -> bool:
        """Return whether it holds the objects of this copy."""
        now = self.held
        if len(now) != len(kept):
            return False
        if len(now) > MANY:
            return now[0] is kept[0] and now[-1] is kept[-1]
        return all(map(is_, now, kept))

    def put(self, kept: Any) -> None:
        """Make it hold the objects of this copy."""
        if isinstance(self.held, list):
            list.__setitem__(self.held, slice(None), kept)
        else:
            deque.clear(self.held)
            deque.extend(self.held, kept)

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return pairs of a position and the object there."""
        return list(enumerate(self.held))

    def at(self, key: Any) -> Any:
        """Return the entry ``key``."""
        return self.held[key]

    def replace(self, key: Any, value: Any) -> None:
        """Put ``value`` in the place of the entry ``key``."""
        self.held[key] = value


class Members(Holder):
    """A set or a bytearray."""

    __slots__ = ()

    def copy(self) -> Any:
        """Copy what it holds now."""
        return self.held.copy()

    def matches(self, kept: Any) -> bool:
        """Return whether it is equal to this copy."""
        if len(self.held) > MANY:
            return len(self.held) == len(kept)
        return bool(self.held == kept)

    def put(self, kept: Any) -> None:
        """Make it equal to this copy."""
        self.held.clear()
        (self.held.update if isinstance(self.held, set) else self.held.extend)(kept)

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return the members of a set, each with itself as its key; nothing for a bytearray."""
        return [(member, member) for member in self.held] if isinstance(self.held, set) else []

    def replace(self, key: Any, value: Any) -> None:
        """Put ``value`` in the place of a set's member ``key``."""
        if isinstance(self.held, set):
            self.held.remove(key)
            self.held.add(value)

    def name(self, key: Any) -> str:
        """Return the name of the set: its members have no names."""
        return self.label
