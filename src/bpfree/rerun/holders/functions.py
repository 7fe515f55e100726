"""Functions: they keep things in the defaults of their arguments, or in arguments that were given beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import is_
from typing import Any, ClassVar

from bpfree.rerun.holders.base import Holder


class Function(Holder):
    """A function, with the defaults of its arguments."""

    __slots__ = ()
    _parts: ClassVar[Sequence[str]] = ("__defaults__", "__kwdefaults__")

    def copy(self) -> Any:
        """Copy what it holds now."""
        return [getattr(self.held, part) for part in self._parts]

    def matches(self, kept: Any) -> bool:
        """Return whether it holds the objects of this copy."""
        return all(map(is_, self.copy(), kept))

    def put(self, kept: Any) -> None:
        """Make it hold the objects of this copy."""
        self.held.__defaults__, self.held.__kwdefaults__ = kept

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return pairs of a number and a part of the function."""
        return list(enumerate(self.copy()))

    def replace(self, key: Any, value: Any) -> None:
        """Put ``value`` in the place of the part ``key``."""
        self.put([value if number == key else part for number, part in self.entries()])

    def name(self, key: Any) -> str:
        """Return the function's name: its parts have no names."""
        return self.label


class Partial(Function):
    """A function with some arguments given beforehand."""

    __slots__ = ()
    _parts = ("func", "args", "keywords")

    def put(self, kept: Any) -> None:
        """Make it hold the objects of this copy."""
        self.held.__setstate__((*kept, vars(self.held)))
