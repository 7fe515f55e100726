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

    __slots__ = ("_held", "_kind")

    def __init__(self, label: str, held: dict[Any, Any]) -> None:
        self._held = held
        # What a subclass does when it is read or written to belongs to the pass, and not to us.
        self._kind: Any = OrderedDict if isinstance(held, OrderedDict) else dict
        super().__init__(label)

    @property
    def held(self) -> object:
        """The dictionary."""
        return self._held

    def copy(self) -> Any:
        """Copy what it holds now."""
        return list(self._kind.items(self._held))

    def matches(self, kept: Any) -> bool:
        """Return whether it holds the objects of this copy."""
        now = self._held
        if len(now) != len(kept):
            return False
        if len(now) > MANY:
            last = next(reversed(now))
            return last is kept[-1][0] and dict.__getitem__(now, last) is kept[-1][1]
        pairs = zip(self._kind.items(now), kept, strict=True)
        return all(key is known and value is before for (key, value), (known, before) in pairs)

    def put(self, kept: Any) -> None:
        """Make it hold the objects of this copy, in their order."""
        self._kind.clear(self._held)
        for key, value in kept:
            self._kind.__setitem__(self._held, key, value)

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return pairs of a key and the object there."""
        return list(self._kind.items(self._held))

    def at(self, key: Any) -> Any:
        """Return the entry ``key``."""
        return self._kind.__getitem__(self._held, key)

    def replace(self, key: Any, value: Any) -> None:
        """Put ``value`` in the place of the entry ``key``."""
        self._kind.__setitem__(self._held, key, value)


class RuleBuffers(Entries):
    """The buffers of a learning rule's module: those that are drawn later stay."""

    __slots__ = ()

    def put(self, kept: Any) -> None:
        """Put the buffers of this copy back."""
        self._held.update(kept)


class Items(Holder):
    """A list or a deque."""

    __slots__ = ("_held",)

    def __init__(self, label: str, held: list[Any] | deque[Any]) -> None:
        self._held = held
        super().__init__(label)

    @property
    def held(self) -> object:
        """The list or deque."""
        return self._held

    def copy(self) -> Any:
        """Copy what it holds now."""
        return list(self._held)

    def matches(self, kept: Any) -> bool:
        """Return whether it holds the objects of this copy."""
        now = self._held
        if len(now) != len(kept):
            return False
        if len(now) > MANY:
            return now[0] is kept[0] and now[-1] is kept[-1]
        return all(map(is_, now, kept))

    def put(self, kept: Any) -> None:
        """Make it hold the objects of this copy."""
        if isinstance(self._held, list):
            list.__setitem__(self._held, slice(None), kept)
        else:
            deque.clear(self._held)
            deque.extend(self._held, kept)

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return pairs of a position and the object there."""
        return list(enumerate(self._held))

    def at(self, key: Any) -> Any:
        """Return the entry ``key``."""
        return self._held[key]

    def replace(self, key: Any, value: Any) -> None:
        """Put ``value`` in the place of the entry ``key``."""
        self._held[key] = value


class Members(Holder):
    """A set or a bytearray."""

    __slots__ = ("_held",)

    def __init__(self, label: str, held: set[Any] | bytearray) -> None:
        self._held = held
        super().__init__(label)

    @property
    def held(self) -> object:
        """The set or bytearray."""
        return self._held

    def copy(self) -> Any:
        """Copy what it holds now."""
        return self._held.copy()

    def matches(self, kept: Any) -> bool:
        """Return whether it is equal to this copy."""
        if len(self._held) > MANY:
            return len(self._held) == len(kept)
        return bool(self._held == kept)

    def put(self, kept: Any) -> None:
        """Make it equal to this copy."""
        self._held.clear()
        (self._held.update if isinstance(self._held, set) else self._held.extend)(kept)

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return the members of a set, each with itself as its key; nothing for a bytearray."""
        return [(member, member) for member in self._held] if isinstance(self._held, set) else []

    def replace(self, key: Any, value: Any) -> None:
        """Put ``value`` in the place of a set's member ``key``."""
        if isinstance(self._held, set):
            self._held.remove(key)
            self._held.add(value)

    def name(self, key: Any) -> str:
        """Return the name of the set: its members have no names."""
        return self.label
