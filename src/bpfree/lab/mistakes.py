"""What jsonargparse says of a value that does not fit, in one line."""

from __future__ import annotations

import re

import bpfree
import bpfree.lab.models as builtin
from bpfree.errors import nearest

_SWITCH = "<class 'bool'>"
_NEEDED = {
    "<class 'int'>": "a whole number is needed",
    "<class 'float'>": "a number is needed",
    _SWITCH: "true or false is needed",
    "<class 'collections.abc.Sequence'>": "a list in brackets is needed",
}
_NOTHING = "<class 'NoneType'>"


def in_one_line(message: str) -> str:
    """The message about one option's value, shortened; any other as it is."""
    keys = re.findall(r'Parser key "([^"]+)":', message)
    given = re.findall(r"(?:Given value|Got value): (.*)", message)
    if not keys or not given:
        return message
    option, value = ": ".join([f"--{keys[0].replace('_', '-')}", *keys[1:]]), _value(given[0])
    return next(
        (f"{option}: {said}" for said in (_unknown_class(message), _wrong_type(message, value)) if said), message
    )


def _value(given: str) -> str:
    """The value as it was given: jsonargparse wraps what belongs to a class's argument."""
    nested = re.fullmatch(r"NestedArg\(key='[^']*', val='(.*)'\)", given)
    return nested[1] if nested else given


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


def _wrong_type(message: str, value: str) -> str:
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
