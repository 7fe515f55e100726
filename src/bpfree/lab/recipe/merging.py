"""Laying settings over settings: particular ones over general ones, and a recipe over the one that it extends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bpfree.lab.settings.trust import CLASSES


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge settings, later layers over earlier ones; the arguments of a class are merged one by one."""
    result: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            known = result.get(name)
            result[name] = _class(known, value) if name in CLASSES else _value(known, value)
    return result


def _class(known: Any, value: Any) -> Any:
    """Merge a class over another. If it is the same class, or has no name, only its arguments change."""
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


def extended(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file's parts, merged over those of the recipe that it extends.

    Args:
        theirs: The parts of the other recipe; they are valid.
        own: The file's own parts. Parts of a wrong shape stay: the reader reports them.
    """
    result = {**theirs, **own, "title": own.get("title"), "base": _over(theirs.get("base"), own.get("base"))}
    rows, columns = (_listed(theirs.get(part), own.get(part)) for part in ("rows", "columns"))
    result |= {"rows": rows, "columns": columns}
    rows, columns = (part if isinstance(part, Mapping) else {} for part in (rows, columns))  # others are reported later
    names = [f"{row}/{column}" for row in rows for column in columns]
    scales = _fitting(theirs.get("scales") or {}, {"rows": rows, "columns": columns, "cells": names})
    cells = _only(names, theirs.get("cells"))
    expected = {row: _only(columns, numbers) for row, numbers in _only(rows, theirs.get("expected")).items()}
    return result | {
        "scales": _listed(scales, own.get("scales")),
        "cells": _added(cells, own.get("cells")),
        "expected": _added(expected, own.get("expected")),
    }


def _listed(theirs: Mapping[str, Any] | None, own: Any) -> Any:
    """Return the entries that the file lists, each over the one of its name there; all of theirs if it lists none."""
    if not isinstance(own, Mapping):
        return theirs if own is None else own
    return {name: _over((theirs or {}).get(name), value) for name, value in own.items()}


def _fitting(scales: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """Return another recipe's scales, without what they say of rows, columns and cells that the file does not have."""
    return {
        name: scale and scale | {part: _only(names[part], scale[part]) for part in names if part in scale}
        for name, scale in scales.items()
    }


def _over(theirs: Any, own: Any) -> Any:
    """Merge settings over others."""
    if theirs is None or own is None:
        return theirs if own is None else own
    return merged(theirs, own) if isinstance(own, Mapping) else own


def _only(names: Any, entries: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (entries or {}).items() if name in names}


def _added(theirs: dict[str, Any], own: Any) -> Any:
    """Merge entries over others; an entry that the file leaves empty becomes empty."""
    if not isinstance(own, Mapping):
        return theirs if own is None else own
    return theirs | {name: None if value is None else _over(theirs.get(name), value) for name, value in own.items()}
