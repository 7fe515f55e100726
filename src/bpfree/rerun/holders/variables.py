"""Variables of scopes: of a function's closure, of a module (globals), of a class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import is_
from types import FunctionType
from typing import Any, Protocol

from bpfree.rerun.holders.base import ABSENT, Holder


class Variables(Holder):
    """Some variables of a scope: a function's closure, its module (globals), or a class.

    Args:
        label: Its name.
        held: The object that the scope belongs to.
        names: The names of the variables.
        scope: The scope, in which variables are looked up, set and deleted.
    """

    __slots__ = ("_names", "_scope")

    def __init__(self, label: str, held: object, names: Sequence[str], scope: Scope) -> None:
        self._names, self._scope = names, scope
        super().__init__(label, held)

    def copy(self) -> Any:
        """Return the values of the variables now."""
        get = self._scope.get
        return [get(name, ABSENT) for name in self._names]

    def matches(self, kept: Any) -> bool:
        """Return whether the variables hold the objects of this copy."""
        return all(map(is_, self.copy(), kept))

    def put(self, kept: Any) -> None:
        """Make the variables hold the objects of this copy."""
        for name, value, now in zip(self._names, kept, self.copy(), strict=True):
            if value is ABSENT and now is not ABSENT:
                del self._scope[name]
            elif value is not now:
                self._scope[name] = value

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return pairs of a variable's name and its value."""
        return [(name, value) for name, value in zip(self._names, self.copy(), strict=True) if value is not ABSENT]

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
