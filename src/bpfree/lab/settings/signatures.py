"""The arguments that a class takes."""

from __future__ import annotations

import inspect
from typing import NamedTuple

FROM_DATA = frozenset({"shape", "classes"})
"""Arguments that a model gets from the data set, if it has them: one input's shape, and the number of classes."""
_CATCH_ALL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Arguments(NamedTuple):
    """The arguments of a class, those that its ``**kwargs`` hand on to a base class among them.

    Attributes:
        names: Their names.
        more: True if it takes others too, of any name.
    """

    names: tuple[str, ...]
    more: bool


def arguments(kind: type) -> Arguments:
    """Return the arguments that a class takes by name."""
    names: dict[str, None] = {}
    more = False
    for base in kind.__mro__[:-1]:  # object takes nothing, whatever its signature says
        if "__init__" in vars(base):
            _, *taken = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
            names |= dict.fromkeys(entry.name for entry in taken if entry.kind not in _CATCH_ALL)
            more = any(entry.kind is entry.VAR_KEYWORD for entry in taken)
            if not more:
                break
    return Arguments(tuple(names), more)
