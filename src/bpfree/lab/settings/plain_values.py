"""Settings as plain values, for JSON, hashes and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

import bpfree
from bpfree.feedback.options import is_default, is_unused


def rule_options(rule: bpfree.Rule) -> dict[str, Any]:
    """Return the options of a rule that are not at their defaults, as plain values."""
    options = {
        entry.name: plain(getattr(rule, entry.name))
        for entry in fields(rule)
        if entry.init and not is_default(getattr(rule, entry.name), default(entry))
    }
    feedback = getattr(rule, "feedback", None)
    if "feedback" in options and isinstance(feedback, bpfree.Feedback):
        # Records have neither options that came after them nor the limit, which says nothing about the numbers.
        left_out = {entry.name for entry in fields(feedback) if is_unused(entry, feedback)} | {"max_bytes"}
        options["feedback"] = {name: value for name, value in options["feedback"].items() if name not in left_out}
    return options


def default(entry: Field[Any]) -> Any:
    """Return a field's default; MISSING if it has none."""
    return entry.default_factory() if entry.default_factory is not MISSING else entry.default


def plain(value: object) -> Any:
    """Return ``value`` as JSON has it; dataclasses become dictionaries, other objects their names."""
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value) if entry.init}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    # Not repr: the address in it would make every process's settings differ.
    named = value if hasattr(value, "__qualname__") else type(value)
    return import_path(named)


def import_path(thing: Any) -> str:
    """Return the path under which a class or function can be imported."""
    public = getattr(bpfree, thing.__qualname__, None) is thing
    return f"{'bpfree' if public else thing.__module__}.{thing.__qualname__}"
