"""A recipe that extends another: what its file does not say is as there, but for the title."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bpfree.lab.tables.inherit import merged

_LISTED = ("rows", "columns", "scales")  # a file that has these has those that it lists, and no others


def extended(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says, over what the recipe says that it extends.

    Args:
        theirs: The other recipe's parts, which are in order.
        own: The file's; those of a wrong shape are left for the reader to name.
    """
    result = {**theirs, **own, "title": own.get("title"), "base": _over(theirs.get("base"), own.get("base"))}
    for part in _LISTED:
        if isinstance(own.get(part), Mapping):
            known = theirs.get(part) or {}
            result[part] = {name: _over(known.get(name), value) for name, value in own[part].items()}
    rows, columns = (result[part] if isinstance(result[part], Mapping) else {} for part in ("rows", "columns"))
    names = [f"{row}/{column}" for row in rows for column in columns]
    cells = _only(names, theirs.get("cells"))
    expected = {row: _only(columns, numbers) for row, numbers in _only(rows, theirs.get("expected")).items()}
    return result | {"cells": _added(cells, own.get("cells")), "expected": _added(expected, own.get("expected"))}


def _over(theirs: Any, own: Any) -> Any:
    """Settings over settings."""
    if theirs is None or own is None:
        return theirs if own is None else own
    return merged(theirs, own) if isinstance(own, Mapping) else own


def _only(names: Any, entries: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (entries or {}).items() if name in names}


def _added(theirs: dict[str, Any], own: Any) -> Any:
    """Entries, and others over them; what a file leaves empty is so."""
    if not isinstance(own, Mapping):
        return theirs if own is None else own
    return theirs | {name: None if value is None else _over(theirs.get(name), value) for name, value in own.items()}
