"""How a cell gets its settings: the more particular ones are laid over the more general ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bpfree.lab.trust import CLASSES


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, each layer over those before it; of a class the arguments are merged one by one."""
    result: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            known = result.get(name)
            result[name] = _class(known, value) if name in CLASSES else _value(known, value)
    return result


def _class(known: Any, value: Any) -> Any:
    """A class over another: of the same one, or of none by name, it changes some arguments."""
    known, value = _named(known), _named(value)
    if not (isinstance(known, Mapping) and isinstance(value, Mapping)):
        return value
    if value.get("class_path", known.get("class_path")) != known.get("class_path"):
        return value  # another class has other arguments
    return _value(known, value)


def _named(value: Any) -> Any:
    return {"class_path": value} if isinstance(value, str) else value


def _value(known: Any, value: Any) -> Any:
    if not (isinstance(known, Mapping) and isinstance(value, Mapping)):
        return value
    return {**known, **{name: _value(known.get(name), item) for name, item in value.items()}}
