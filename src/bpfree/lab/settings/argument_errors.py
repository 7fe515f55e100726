"""Jsonargparse's messages about values or arguments that do not fit, shortened to one line."""

from __future__ import annotations

import importlib
import re
from typing import NamedTuple

import bpfree
import bpfree.lab.models as builtin
from bpfree.errors import nearest
from bpfree.lab.settings.signatures import FROM_DATA, arguments

_SWITCH = "<class 'bool'>"
_NEEDED = {
    "<class 'int'>": "a whole number is needed",
    "<class 'float'>": "a number is needed",
    _SWITCH: "true or false is needed",
    "<class 'collections.abc.Sequence'>": "a list in brackets is needed",
}
_NOTHING = "<class 'NoneType'>"


class Mistake(NamedTuple):
    """A mistake in a value or an argument.

    Attributes:
        place: The setting, the argument of its class, the argument of that one's, and so on.
        said: The description of the mistake.
    """

    place: tuple[str, ...]
    said: str

    def within(self, outer: str) -> str:
        """Return the whole message, as seen from within this setting."""
        place = self.place[1:] if self.place[0] == outer else self.place
        return ": ".join([*place, self.said])


def in_one_line(message: str, outer: str) -> str:
    """Return jsonargparse's message as seen from within a setting, shortened if it is about a value or argument."""
    found = mistake(message)
    return message if found is None else found.within(outer)


def mistake(message: str) -> Mistake | None:
    """Return the mistake that a message of jsonargparse describes; None if it is not about a value or an argument."""
    place = re.findall(r'Parser key "([^"]+)":', message)
    found = (
        _missing(message),
        _unknown_argument(message),
        _unknown_class(message),
        _failed_import(message),
        _other_class(message),
        _argument_of_no_class(message),
        _wrong_type(message),
    )
    return next((Mistake(tuple(place), said) for said in found if place and said), None)


def _missing(message: str) -> str:
    """Return the part of a message that names a package which a class needs and which is not installed."""
    found = re.search(r"- (\w+ needs \w+: pip install [^\n]+)", message)
    return found[1] if found else ""


def _unknown_argument(message: str) -> str:
    found = re.search(r"class_path '([\w.]+)\.(\w+)':\s+Option '([\w.]+)' is not accepted", message)
    if not found:
        return ""
    module, name, argument = found.groups()
    if module.startswith("torch.nn") and name == "Module":
        return f"the network's name comes before its argument: --model NAME --model.{argument} VALUE."
    taken = arguments(getattr(importlib.import_module(module), name)).names
    return f"{name} has no argument {argument!r}. {nearest(argument, [one for one in taken if one not in FROM_DATA])}"


def _unknown_class(message: str) -> str:
    found = re.search(r"Expected a dot import path string: (\S+)", message)
    kinds = {"torch.nn.modules.module.Module": ("network", builtin.__all__), ".Rule'": ("rule", bpfree.RULES)}
    for base, (kind, names) in kinds.items():
        if found and base in message:
            own = f"my_file.My{kind.capitalize()}"
            return (
                f"{found[1]} is no {kind} of bpfree. {nearest(found[1], names)} One of your own is named by its import "
                f"path, {own}."
            )
    return ""


def _failed_import(message: str) -> str:
    """Return the part of a message that says why a class cannot be imported."""
    reasons = r"(No module named [^\n]+|module '[^\n]+ has no attribute [^\n]+)"
    found = re.search(rf"class_path '([\w.]+)':\s+{reasons}", message)
    if not found:
        return ""
    path, reason = found.groups()
    where = " A file of your own must lie in this folder, or be installed." if reason.startswith("No module") else ""
    return f"{path} cannot be imported: {reason}.{where}"


def _other_class(message: str) -> str:
    """Return the part of a message that says from what a class must be derived."""
    found = re.search(r"Import path does not correspond to a subclass of (\w+)", message)
    given = re.search(r"Given value: .*?([\w.]+\.\w+)", message)
    bases = {"Rule": ("rule", "bpfree.Rule"), "Module": ("network", "torch.nn.Module")}
    if not found or not given or found[1] not in bases:
        return ""
    kind, base = bases[found[1]]
    return f"{given[1]} is no {kind}: a class derived from {base} is needed."


def _argument_of_no_class(message: str) -> str:
    """Return what is wrong where an argument of a class is given to a setting that takes a name."""
    found = re.search(r"Expected a <class 'str'>. Got value: NestedArg\(key='([\w.]+)'", message)
    return f"a name is taken here, which has no argument {found[1]!r}." if found else ""


def _wrong_type(message: str) -> str:
    given = re.search(r"(?:Given value|Got value): (.*)", message)
    if not given:
        return ""
    value = _value(given[1])
    wanted = set(re.findall(r"Expected an? (<class '[\w.]+'>|typing\.Literal\[[^\]]*\])", message)) - {_NOTHING}
    words = re.findall(r"'([^']*)'", " ".join(kind for kind in wanted if "Literal" in kind))
    if words and _SWITCH in wanted:
        return f"true, false or {' or '.join(words)} is needed, not {value}."
    if len(wanted) != 1:
        return ""
    if words:
        return f"{value} is not known. {nearest(value, words)}"
    kind = wanted.pop()
    return f"{_NEEDED[kind]}, not {value}." if kind in _NEEDED else ""


def _value(given: str) -> str:
    """Return the value as it was given: jsonargparse wraps values that belong to a class's argument."""
    nested = re.fullmatch(r"NestedArg\(key='[^']*', val='(.*)'\)", given)
    return nested[1] if nested else given
