"""Code of one's own that a run depends on: it changes without a version, so the identity of a run holds its hash."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

_VERSIONED = ("bpfree", "torch")


def own_code(module: str) -> str | None:
    """A hash of a module's file if it is somebody's own; None if it is bpfree's or torch's, or has no file."""
    if module.partition(".")[0] in _VERSIONED:
        return None
    path = getattr(importlib.import_module(module), "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None


def own_codes(rule: object, within: object, model: Mapping[str, Any]) -> list[Any]:
    """Hashes of the files of a rule's class and of a model's; behind them, by module, those of others of one's own.

    Others are the files of the rule carried ``within``, of the classes that any of these are derived from, and of the
    classes and functions among their arguments. What such a file imports besides is not seen.

    Args:
        rule: The rule.
        within: The rule that carries signals down, or None.
        model: ``class_path`` and ``init_args``.
    """
    named = [type(rule).__module__, model["class_path"].rpartition(".")[0]]
    others = {entry.__module__ for kind in _inside([rule, within, model]) for entry in _ancestry(kind)}
    found = {module: own_code(module) for module in sorted(others - set(named)) if _is_own(module)}
    return [*map(own_code, named), *([found] if found else [])]


def _inside(value: Any) -> Iterator[Any]:
    """The classes and functions of a value and of what it holds; a mapping may name a class by its ``class_path``."""
    if is_dataclass(value) and not isinstance(value, type):
        yield type(value)
        value = [getattr(value, entry.name) for entry in fields(value)]
    if isinstance(value, Mapping):
        path = value.get("class_path")
        if isinstance(path, str):
            yield from _imported(path)
        value = value.values()
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for item in value:
            yield from _inside(item)
    elif hasattr(value, "__qualname__"):
        yield value
    elif value is not None:
        yield type(value)


def _imported(path: str) -> Iterator[Any]:
    module, _, name = path.rpartition(".")
    if module and module.partition(".")[0] not in _VERSIONED:
        yield getattr(importlib.import_module(module), name)


def _ancestry(kind: Any) -> tuple[Any, ...]:
    return kind.__mro__ if isinstance(kind, type) else (kind,)


def _is_own(module: str | None) -> bool:
    root = (module or "").partition(".")[0]
    return bool(root) and root not in _VERSIONED and root not in sys.stdlib_module_names
