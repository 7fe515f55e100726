"""The first argument of a call, given by position or by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from torch import nn

from bpfree.rerun.arguments import Call


def first_argument(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str | None, Any]:
    """Return the first argument of a call of ``module``: its name where it was given by name, and its value.

    By name, the first is what the signature of ``forward`` names first, in whatever order the call names them. Where
    the signature names none of them (``**kwargs``) it is the only one; of several none is the first.

    Returns:
        (None, the value), (a name, the value), or (None, None) where there is no first argument.
    """
    if args:
        return None, args[0]
    name = next(iter(kwargs), None) if len(kwargs) < 2 else _first_named(module, kwargs)
    return (None, None) if name is None else (name, kwargs[name])


def with_first(call: Call, name: str | None, value: Any) -> tuple[Any, Any]:
    """Return ``call``, (args, kwargs), with ``value`` in the place of the first argument."""
    args, kwargs = call
    return ((value, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: value})


def _first_named(module: nn.Module, kwargs: Mapping[str, Any]) -> str | None:
    forward = module.forward
    function = getattr(forward, "__func__", None)
    # What is bound to a module is not kept: that would keep the module.
    names = _names(forward) if function is None else _names_of_method(function)
    return next((name for name in names if name in kwargs), None)


@lru_cache(maxsize=256)
def _names_of_method(function: Callable[..., Any]) -> tuple[str, ...]:
    return _names(function)


def _names(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)
