"""Places that keep things: a module's attributes, a list, an object, a variable of a closure.

A forward pass may change what lies in them. Each kind of place can be copied, compared and put back cheaply: a copy
holds the same objects, not copies of them.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from operator import is_
from types import FunctionType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

MANY = 1000
"""Containers of more entries are watched by their length and their ends, and their entries are not looked into."""

_ABSENT = object()
_STRUCTURE = frozenset(vars(nn.Module())) - {"training"}

_SIZES = frozenset({"in_features", "out_features", "in_channels", "out_channels", "num_features", "normalized_shape"})
"""Attributes that torch's layers have besides and that no pass changes."""


class Holder(ABC):
    """A place that keeps things.

    Attributes:
        label: Its name for messages, ``"router"`` or ``"history"``; "" is the model itself.
        kept: A copy of what it held when it was last looked at.
        children: The places inside it.
        tensors: The tensors in it by key, parameters left out.
    """

    __slots__ = ("children", "kept", "label", "tensors")

    def __init__(self, label: str) -> None:
        self.label = label
        self.kept: Any = self.copy()
        self.children: Sequence[Holder] = ()
        self.tensors: Sequence[tuple[Any, Tensor]] = ()

    @property
    @abstractmethod
    def held(self) -> object:
        """The object that keeps the things."""

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

    def at(self, key: Any) -> Any:
        """Return the entry ``key``."""
        return next(value for place, value in self.entries() if place is key or place == key)

    def replace(self, key: Any, value: Any) -> None:
        """Put ``value`` in the place of the entry ``key``."""
        raise KeyError(key)

    def name(self, key: Any) -> str:
        """Return the entry's name for messages: ``"router.balance"`` or ``"history[0]"``."""
        return f"{self.label}[{key!r}]"


class Attributes(Holder):
    """The attributes of an object."""

    __slots__ = ("_attributes", "_held")

    def __init__(self, label: str, held: object) -> None:
        self._held, self._attributes = held, vars(held)
        super().__init__(label)

    @property
    def held(self) -> object:
        """The object."""
        return self._held

    def copy(self) -> Any:
        """Copy what it holds now."""
        return self._attributes.copy()

    def matches(self, kept: Any) -> bool:
        """Return whether it holds the objects of this copy."""
        return _same(self._attributes, kept)

    def put(self, kept: Any) -> None:
        """Make it hold the objects of this copy."""
        _put(self._attributes, kept)

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return pairs of a key and the object there."""
        return list(self._attributes.items())

    def replace(self, key: Any, value: Any) -> None:
        """Put ``value`` in the place of the entry ``key``."""
        self._attributes[key] = value

    def name(self, key: Any) -> str:
        """Return the attribute's name."""
        return f"{self.label}.{key}".lstrip(".")


class ModuleAttributes(Attributes):
    """The attributes and buffers of a module. Its submodules and hooks are looked at, but never changed."""

    __slots__ = ("_buffers", "_hooks", "_modules", "_pre_hooks", "_skipped")

    def __init__(self, label: str, held: nn.Module) -> None:
        self._buffers, self._modules = held._buffers, held._modules
        self._hooks, self._pre_hooks = held._forward_hooks, held._forward_pre_hooks
        # The attributes that every module, or every layer of torch, has come first and are not compared one by one.
        constant = {"training", *_STRUCTURE, *(_SIZES if type(held).__module__.startswith("torch.nn.") else ())}
        own = (number for number, key in enumerate(vars(held)) if key not in constant)
        self._skipped = next(own, len(vars(held)))
        super().__init__(label, held)

    def copy(self) -> Any:
        """Copy what it holds now."""
        hooks = len(self._hooks), len(self._pre_hooks)
        attributes = self._attributes.copy()
        compared = tuple(attributes.values())[self._skipped :]
        return attributes, compared, self._buffers.copy(), self._modules.copy(), *hooks

    def matches(self, kept: Any) -> bool:
        """Return whether it holds the objects of this copy."""
        now = self._attributes
        attributes, compared, buffers, modules, _, _ = kept
        if len(now) != len(attributes) or now.get("training") is not attributes.get("training"):
            return False
        if compared and not all(map(is_, islice(now.values(), self._skipped, None), compared)):
            return False
        return ((not self._buffers and not buffers) or _same(self._buffers, buffers)) and (
            not modules or _same(self._modules, modules)
        )

    def is_known(self) -> bool:
        """Return whether it has as many hooks and submodules as at the last look."""
        _, _, _, modules, hooks, pre_hooks = self.kept
        return len(self._hooks) == hooks and len(self._pre_hooks) == pre_hooks and len(self._modules) == len(modules)

    def put(self, kept: Any) -> None:
        """Make it hold the objects of this copy."""
        _put(self._attributes, kept[0])
        _put(self._buffers, kept[2])

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return pairs of a name and the attribute or buffer there."""
        own = [(key, value) for key, value in self._attributes.items() if key not in _STRUCTURE]
        return [*own, *self._buffers.items()]

    def replace(self, key: Any, value: Any) -> None:
        """Put ``value`` in the place of the attribute or buffer ``key``."""
        (self._buffers if key in self._buffers else self._attributes)[key] = value


class Slots(Holder):
    """The ``__slots__`` of an object."""

    __slots__ = ("_held", "_names")

    def __init__(self, label: str, held: object, names: Sequence[str]) -> None:
        self._held, self._names = held, names
        super().__init__(label)

    @property
    def held(self) -> object:
        """The object."""
        return self._held

    def copy(self) -> Any:
        """Copy what it holds now."""
        return [getattr(self._held, name, _ABSENT) for name in self._names]

    def matches(self, kept: Any) -> bool:
        """Return whether it holds the objects of this copy."""
        return all(map(is_, self.copy(), kept))

    def put(self, kept: Any) -> None:
        """Make it hold the objects of this copy."""
        for name, value in zip(self._names, kept, strict=True):
            if value is not _ABSENT:
                object.__setattr__(self._held, name, value)
            elif hasattr(self._held, name):
                object.__delattr__(self._held, name)

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return pairs of a slot's name and the object there."""
        return [(name, value) for name, value in zip(self._names, self.copy(), strict=True) if value is not _ABSENT]

    def replace(self, key: Any, value: Any) -> None:
        """Put ``value`` into a slot."""
        object.__setattr__(self._held, key, value)

    def name(self, key: Any) -> str:
        """Return the slot's name."""
        return f"{self.label}.{key}".lstrip(".")


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


class Unchanging(Holder):
    """An object that does not change itself, but contains places that do."""

    __slots__ = ("_held",)

    def __init__(self, label: str, held: object) -> None:
        self._held = held
        super().__init__(label)

    @property
    def held(self) -> object:
        """The object itself."""
        return self._held

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

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return pairs of an argument's number or name and the object."""
        held: Any = self.held
        return list(held.items())

    def name(self, key: Any) -> str:
        """Return the argument's name."""
        return f"argument {key!r}"


class Function(Unchanging):
    """A function: its closure, its defaults, the object it is bound to, and the global variables it uses."""

    __slots__ = ("_parts",)

    def __init__(self, label: str, held: object, parts: Sequence[Any]) -> None:
        super().__init__(label, held)
        self._parts = parts

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return pairs of a number and a part of the function: its defaults, or the object it is bound to."""
        return list(enumerate(self._parts))

    def name(self, key: Any) -> str:
        """Return the function's name: its parts have no names."""
        return self.label


class Fixed(Unchanging):
    """A tuple. To exchange an entry, the whole tuple is exchanged in the place that holds it."""

    __slots__ = ("_above", "_key")

    def __init__(self, label: str, held: tuple[Any, ...], above: Holder, key: Any) -> None:
        super().__init__(label, held)
        self._above, self._key = above, key

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return pairs of a position and the object there, of the tuple that the place holds now."""
        return list(enumerate(self._above.at(self._key)))

    def replace(self, key: Any, value: Any) -> None:
        """Put another tuple in its place, with ``value`` for the entry ``key``."""
        now = self._above.at(self._key)
        make: Any = getattr(type(now), "_make", type(now))  # a named tuple
        self._above.replace(self._key, make([*now[:key], value, *now[key + 1 :]]))


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


class Variables(Holder):
    """Some variables of a scope: a function's closure, its module (globals), or a class.

    Args:
        label: Its name.
        held: The object that the scope belongs to.
        names: The names of the variables.
        scope: The scope, in which variables are looked up, set and deleted.
    """

    __slots__ = ("_held", "_names", "_scope")

    def __init__(self, label: str, held: object, names: Sequence[str], scope: Scope) -> None:
        self._held, self._names, self._scope = held, names, scope
        super().__init__(label)

    @property
    def held(self) -> object:
        """The object that the scope belongs to."""
        return self._held

    def copy(self) -> Any:
        """Return the values of the variables now."""
        get = self._scope.get
        return [get(name, _ABSENT) for name in self._names]

    def matches(self, kept: Any) -> bool:
        """Return whether the variables hold the objects of this copy."""
        return all(map(is_, self.copy(), kept))

    def put(self, kept: Any) -> None:
        """Make the variables hold the objects of this copy."""
        for name, value, now in zip(self._names, kept, self.copy(), strict=True):
            if value is _ABSENT and now is not _ABSENT:
                del self._scope[name]
            elif value is not now:
                self._scope[name] = value

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return pairs of a variable's name and its value."""
        return [(name, value) for name, value in zip(self._names, self.copy(), strict=True) if value is not _ABSENT]

    def replace(self, key: Any, value: Any) -> None:
        """Put ``value`` into the variable ``key``."""
        self._scope[key] = value

    def name(self, key: Any) -> str:
        """Return the variable's name."""
        return f"{self.label} {key}"


class Scope(Protocol):
    """A scope, in which variables are looked up, set and deleted: a dictionary, or an object with its methods."""

    def get(self, name: str, default: Any, /) -> Any:
        """Return the variable's value."""

    def __setitem__(self, name: str, value: Any, /) -> None: ...

    def __delitem__(self, name: str, /) -> None: ...


class Closure:
    """The variables of a closure as a scope."""

    def __init__(self, function: FunctionType) -> None:
        self._cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))

    def get(self, name: str, default: Any, /) -> Any:
        """Return the variable's value."""
        try:
            return self._cells[name].cell_contents
        except ValueError:  # it has not been assigned yet
            return default

    def __setitem__(self, name: str, value: Any, /) -> None:
        self._cells[name].cell_contents = value

    def __delitem__(self, name: str, /) -> None:
        del self._cells[name].cell_contents


class ClassScope:
    """The attributes of a class as a scope."""

    def __init__(self, held: type) -> None:
        self._held = held

    def get(self, name: str, default: Any, /) -> Any:
        """Return the attribute of the class itself, not an inherited one."""
        return vars(self._held).get(name, default)

    def __setitem__(self, name: str, value: Any, /) -> None:
        setattr(self._held, name, value)

    def __delitem__(self, name: str, /) -> None:
        delattr(self._held, name)


class Numbers(Holder):
    """A generator of random numbers or a numpy array: an object whose state can be read and set.

    Args:
        label: Its name.
        held: The object.
        get: Returns the state.
        put: Sets the state.
    """

    __slots__ = ("_get", "_held", "_set")

    def __init__(self, label: str, held: object, get: Any, put: Any) -> None:
        self._held, self._get, self._set = held, get, put
        super().__init__(label)

    @property
    def held(self) -> object:
        """The generator or array."""
        return self._held

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


def _same(now: Mapping[Any, Any], kept: Mapping[Any, Any]) -> bool:
    return len(now) == len(kept) and (not now or all(map(is_, now.values(), kept.values())))


def _put(now: dict[Any, Any], kept: Mapping[Any, Any]) -> None:
    # Entry by entry: a thread that evaluates the model must never find it empty.
    for key, value in kept.items():
        if now.get(key, _ABSENT) is not value:
            now[key] = value
    for key in [key for key in now if key not in kept]:
        del now[key]
