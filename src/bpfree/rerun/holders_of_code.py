"""Find the places that belong to the code of a model: closures, class attributes and global variables."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dis import get_instructions, opmap
from enum import Enum
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from bpfree.rerun.holders import (
    Attributes,
    ClassScope,
    Closure,
    Entries,
    Function,
    Holder,
    Items,
    Members,
    Method,
    Partial,
    Slots,
    Variables,
)
from bpfree.taps import Cut, Tap

LEAVES = frozenset(
    {type(None), bool, int, float, complex, str, bytes, type, range, slice, torch.dtype, torch.device, torch.Size}
)
UNTOUCHED = (Optimizer, LRScheduler, DataLoader, Dataset, Enum, ModuleType, type)
"""Objects that no forward pass changes, or that must not be changed without their owner knowing."""

_FOREIGN = (
    sys.stdlib_module_names | {"torch", "numpy", "lightning", "pytorch_lightning", "lightning_fabric", "builtins"}
) - {"__main__", "types", "argparse", "collections"}
"""Packages whose objects and functions keep nothing of a model's."""

_STORE_GLOBAL = opmap["STORE_GLOBAL"]


def is_ours(kind: type) -> bool:
    """Return whether a class belongs to a learning rule: the state of a rule is never put back."""
    bases = (base for base in kind.__mro__ if base.__module__.partition(".")[0] == "bpfree")
    return any(base not in (Tap, Cut) and not base.__module__.startswith("bpfree.lab.") for base in bases)


def is_foreign(module: str | None) -> bool:
    """Return whether what is defined in a module keeps nothing of a model's."""
    return module is None or module.partition(".")[0] in _FOREIGN


def function_holder(label: str, value: Any) -> Holder | None:
    """Return the place of a function, a method or a partial function; None if it keeps nothing."""
    if isinstance(value, partial):
        return Partial(label, value)
    if isinstance(value, MethodType):
        return Method(label, value)
    return None if is_foreign(value.__module__) else Function(label, value)


def code_holders(holder: Holder, known: Mapping[int, Holder]) -> Iterator[Holder]:
    """Yield the places that belong to the code: closures, class attributes, and global variables."""
    held = holder.held
    if isinstance(held, FunctionType):
        yield from _of_closure(holder.label, held, known)
        yield from _of_globals(holder.label, [held])
    elif isinstance(holder, Attributes | Slots):
        for base in type(held).__mro__:
            if not is_foreign(base.__module__) and not is_ours(base):
                yield known_or(known, base, _class)
        yield from _of_globals(holder.label, list(_methods(type(held))))
    elif isinstance(holder, Entries | Items | Members) and not is_foreign(type(held).__module__):
        own = getattr(held, "__dict__", None)  # of a subclass, whose objects have attributes besides
        if isinstance(own, dict):
            yield known_or(known, own, partial(Entries, holder.label))


def known_or(known: Mapping[int, Holder], held: Any, make: Callable[[Any], Holder]) -> Holder:
    """Return the place of ``held`` if it is known, else the one that ``make`` makes of it."""
    there = known.get(id(held))
    return there if there is not None and there.held is held else make(held)


def _of_closure(label: str, function: FunctionType, known: Mapping[int, Holder]) -> Iterator[Holder]:
    """Yield the place of the variables of a function's closure."""
    names = [name for name in function.__code__.co_freevars if name != "__class__"]
    if names:
        yield known_or(known, function.__closure__, lambda held: Variables(label, held, names, Closure(function)))


def _class(held: type) -> Holder:
    """Return the place of a class's own attributes, which all its objects share."""
    names = [
        name
        for name, value in vars(held).items()
        if not name.startswith("__") and not callable(value) and not hasattr(type(value), "__get__")
    ]
    return Variables(f"class {held.__qualname__}:", held, names, ClassScope(held))


def _methods(kind: type) -> Iterator[FunctionType]:
    """Yield the methods that a call of an object may run, found by the names in their code."""
    names, seen = ["forward", "__call__"], {"forward", "__call__"}
    while names:
        method: Any = inspect.getattr_static(kind, names.pop(), None)
        method = getattr(method, "__func__", getattr(method, "fget", method))
        if not isinstance(method, FunctionType) or is_foreign(method.__module__):
            continue
        yield method
        named = [name for code in _nested(method.__code__) for name in code.co_names if name not in seen]
        names += named
        seen.update(named)


def _of_globals(label: str, functions: Sequence[FunctionType]) -> Iterator[Holder]:
    """Yield the places of the global variables that functions write, and of those whose values can change."""
    scopes: dict[int, list[FunctionType]] = {}
    for function in functions:
        scopes.setdefault(id(function.__globals__), []).append(function)
    for sharing in scopes.values():
        scope = sharing[0].__globals__
        codes = [code for function in sharing for code in _nested(function.__code__)]
        written = {name for code in codes for name in _written_globals(code)}
        named = dict.fromkeys(name for code in codes for name in code.co_names if name in scope or name in written)
        names = [name for name in named if name in written or _can_keep(scope[name])]
        if names:
            yield Variables(f"{label} global", sharing[0].__code__, names, scope)


def _written_globals(code: CodeType) -> Iterator[str]:
    if _STORE_GLOBAL in code.co_code[::2]:  # to take every function apart would take long
        yield from (one.argval for one in get_instructions(code) if one.opcode == _STORE_GLOBAL)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _can_keep(value: Any) -> bool:
    if isinstance(value, FunctionType | MethodType):
        return not is_foreign(value.__module__)
    return isinstance(value, Tensor) or not (type(value) in LEAVES or isinstance(value, UNTOUCHED))
