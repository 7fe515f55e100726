"""Checks of the arguments of a model of clicks."""

from __future__ import annotations

from typing import Any, get_args

from bpfree.errors import nearest
from bpfree.lab.errors import SettingsError


def check_choices(**given: tuple[str, Any]) -> None:
    """Raise SettingsError for a value, given with the type of its choices, that is none of them."""
    for argument, (value, choices) in given.items():
        if value not in get_args(choices):  # callers are not type-checked
            raise SettingsError(f"{argument}={value!r} is not known. {nearest(value, get_args(choices))}")


def check_counts(**counts: int) -> None:
    """Raise SettingsError for a count below 1."""
    for name, count in counts.items():
        if count < 1:
            raise SettingsError(f"{name} {count} must be at least 1.")
