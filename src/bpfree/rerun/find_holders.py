"""Find the places where a model, its hooks and the arguments of a pass keep things."""

from __future__ import annotations

import inspect
import pickle
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dis import get_instructions, opmap
from enum import Enum
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from bpfree.errors import UnsupportedLayerError
from bpfree.feedback.lazy_buffers import LazyBuffers
from bpfree.rerun.holders import (
    MANY,
    Arguments,
    Attributes,
    ClassScope,
    Closure,
    Collection,
    Entries,
    Fixed,
    Function,
    Holder,
    Items,
    Members,
    ModuleAttributes,
    Numbers,
    RuleBuffers,
    Slots,
    Variables,
    array_holder,
)
from bpfree.taps import Tap

_LEAVES = frozenset(
    {type(None), bool, int, float, complex, str, bytes, type, range, slice, torch.dtype, torch.device, torch.Size}
)
_UNTOUCHED = (Optimizer, LRScheduler, DataLoader, Dataset, Enum, ModuleType, type)
"""Objects that no forward pass changes, or that must not be changed without their owner knowing."""

_FOREIGN = (
    sys.stdlib_module_names | {"torch", "numpy", "lightning", "pytorch_lightning", "lightning_fabric", "builtins"}
) - {"__main__", "types", "argparse", "collections"}
"""Packages whose objects and functions keep nothing of a model's."""

_STORE_GLOBAL = opmap["STORE_GLOBAL"]


def is_ours(kind: type) -> bool:
    """Return whether a class belongs to a learning rule: the state of a rule is never put back."""
    bases = (base for base in kind.__mro__ if base.__module__.partition(".")[0] == "bpfree")
    return any(base is not Tap and not base.__module__.startswith("bpfree.lab.") for base in bases)


def is_leaf(value: Any) -> bool:
    """Return whether ``value`` cannot hold other objects. Tensors count as such values too."""
    return type(value) in _LEAVES or isinstance(value, Tensor)


def objects_among(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Any, Any]:
    """Return, by number or name, the arguments that can hold other objects: no numbers, texts or plain tensors."""
    if all(map(is_leaf, args)) and all(map(is_leaf, kwargs.values())):
        return {}
    return {name: value for name, value in (*enumerate(args), *kwargs.items()) if not is_leaf(value)}


def first_holder(root: Any) -> Holder:
    """Return the place to begin with: a module, a learning rule's module, or the objects among the arguments."""
    if not isinstance(root, nn.Module):
        return Arguments("", root)
    if not is_ours(type(root)):
        return ModuleAttributes("", root)
    modules = list(root.modules())
    buffers = [RuleBuffers("feedback", module._buffers) for module in modules]
    numbers = [Entries("numbers", module.numbers) for module in modules if isinstance(module, LazyBuffers)]
    return Collection("", root, [*buffers, *numbers])


def look_into(holder: Holder, known: Mapping[int, Holder]) -> None:
    """Find the tensors and the places in what ``holder`` holds now.

    Args:
        holder: The place to look into; it also gets a new copy of what it holds.
        known: The places that are known already, by the identity (``id``) of the object.
    """
    holder.kept = holder.copy()
    if isinstance(holder, Collection):
        return
    entries = list(holder.entries()) if not _is_large(holder) else []
    holder.tensors = [
        (key, value) for key, value in entries if isinstance(value, Tensor) and _is_state(holder.name(key), value)
    ]
    found = [child for key, value in entries if (child := _place(holder, key, value, known)) is not None]
    if isinstance(holder, ModuleAttributes):
        found += _of_module(holder, known)
    holder.children = [*found, *_of_code(holder, known)]


def _is_large(holder: Holder) -> bool:
    held: Any = holder.held
    return isinstance(holder, Entries | Items | Fixed | Members) and len(held) > MANY


def _is_state(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor can be state. Parameters are not; tensors without a version cannot be written to."""
    if isinstance(tensor, nn.Parameter):
        return False
    if is_lazy(tensor):
        raise UnsupportedLayerError(f"{name!r} has no shape yet: run the model once before bpfree.attach().")
    return not tensor.is_inference()


def _place(above: Holder, key: Any, value: Any, known: Mapping[int, Holder]) -> Holder | None:
    """Return the place that belongs to ``value``, an entry of ``above``; None if it keeps nothing."""
    if is_leaf(value):
        return None
    held = known.get(id(value))
    if held is not None and held.held is value and not isinstance(held, Fixed):
        return held
    if isinstance(value, tuple):
        return None if _LEAVES.issuperset(map(type, value)) else Fixed(above.name(key), value, above, key)
    return _made(above.name(key), value)


def _made(label: str, value: Any) -> Holder | None:
    if isinstance(value, nn.Module):
        return None if is_ours(type(value)) else ModuleAttributes(label, value)
    if isinstance(value, _UNTOUCHED):
        return None
    if isinstance(value, dict):
        return Entries(label, value)
    if isinstance(value, list | deque):
        return Items(label, value)
    if isinstance(value, set | bytearray):
        return Members(label, value)
    if isinstance(value, FunctionType | MethodType | partial):
        return _function(label, value)
    return _numbers(label, value) or _object(label, value)


def _numbers(label: str, value: Any) -> Holder | None:
    """Return the place of a generator of random numbers or of an array; None for another object."""
    if isinstance(value, torch.Generator):
        return Numbers(label, value, value.get_state, value.set_state)
    if isinstance(value, random.Random):
        return Numbers(label, value, value.getstate, value.setstate)
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        return None
    if isinstance(value, numpy.ndarray):
        fits = value.flags.writeable and not value.dtype.hasobject and value.size <= 10 * MANY
        return array_holder(label, value) if fits else None
    drawn: Any = sys.modules.get("numpy.random")
    if drawn is not None and isinstance(value, drawn.Generator | drawn.RandomState | drawn.BitGenerator):
        bits = value if isinstance(value, drawn.BitGenerator) else getattr(value, "bit_generator", None)
        if bits is not None:
            return Numbers(label, value, lambda: pickle.dumps(bits.state), lambda kept: _set_bits(bits, kept))
        whole = partial(value.get_state, legacy=False)
        return Numbers(label, value, lambda: pickle.dumps(whole()), lambda kept: value.set_state(pickle.loads(kept)))
    return None


def _set_bits(bits: Any, kept: bytes) -> None:
    bits.state = pickle.loads(kept)


def _object(label: str, value: Any) -> Holder | None:
    kind = type(value)
    if _is_foreign(kind.__module__) or is_ours(kind):
        return None
    if isinstance(getattr(value, "__dict__", None), dict):
        return Attributes(label, value)
    names = [name for base in kind.__mro__ for name in _as_names(vars(base).get("__slots__", ()))]
    names = [name for name in names if not name.startswith("__")]
    return Slots(label, value, names) if names else None


def _as_names(slots: Any) -> Sequence[str]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _is_foreign(module: str | None) -> bool:
    return module is None or module.partition(".")[0] in _FOREIGN


# -- modules ---------------------------------------------------------------------------------------------------------


def _of_module(holder: ModuleAttributes, known: Mapping[int, Holder]) -> Iterator[Holder]:
    """Yield the places of the submodules and of the user's hooks."""
    module: Any = holder.held
    for name, child in module._modules.items():
        if child is not None and not is_ours(type(child)):
            there = known.get(id(child))
            yield there if there is not None and there.held is child else ModuleAttributes(holder.name(name), child)
    where = f"of {holder.label!r}" if holder.label else "of the model"
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        if not _is_own_hook(hook):
            there = known.get(id(hook))
            named = getattr(hook, "__name__", type(hook).__name__)
            place = there if there is not None and there.held is hook else _made(f"hook {named} {where}:", hook)
            if place is not None:
                yield place


def _is_own_hook(hook: Any) -> bool:
    while isinstance(hook, partial):
        hook = hook.func
    bound = getattr(hook, "__self__", None)
    module = getattr(hook, "__module__", None) or ""
    return (bound is not None and is_ours(type(bound))) or (
        module.partition(".")[0] == "bpfree" and not module.startswith("bpfree.lab.")
    )


# -- functions and classes ---------------------------------------------------------------------------------------------


def _function(label: str, value: Any) -> Holder | None:
    if isinstance(value, partial):
        return Function(label, value, [value.func, value.args, value.keywords])
    if isinstance(value, MethodType):
        return Function(label, value, [value.__self__, value.__func__])
    if _is_foreign(value.__module__):
        return None
    return Function(label, value, [value.__defaults__, value.__kwdefaults__])


def _of_code(holder: Holder, known: Mapping[int, Holder]) -> Iterator[Holder]:
    """Yield the places that belong to the code: closures, class attributes, and global variables."""
    held = holder.held
    if isinstance(held, FunctionType):
        yield from _of_closure(holder.label, held, known)
        yield from _of_globals(holder.label, [held], known)
    elif isinstance(holder, Attributes | Slots):
        for base in type(held).__mro__:
            if not _is_foreign(base.__module__) and not is_ours(base):
                yield _known_or(known, base, _class)
        yield from _of_globals(holder.label, list(_methods(type(held))), known)
    elif isinstance(holder, Entries | Items | Members) and not _is_foreign(type(held).__module__):
        own = getattr(held, "__dict__", None)  # of a subclass, whose objects have attributes besides
        if isinstance(own, dict):
            yield _known_or(known, own, partial(Entries, holder.label))


def _known_or(known: Mapping[int, Holder], held: Any, make: Callable[[Any], Holder]) -> Holder:
    there = known.get(id(held))
    return there if there is not None and there.held is held else make(held)


def _of_closure(label: str, function: FunctionType, known: Mapping[int, Holder]) -> Iterator[Holder]:
    """Yield the place of the variables of a function's closure."""
    names = [name for name in function.__code__.co_freevars if name != "__class__"]
    if names:
        yield _known_or(known, function.__closure__, lambda held: Variables(label, held, names, Closure(function)))


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
        if not isinstance(method, FunctionType) or _is_foreign(method.__module__):
            continue
        yield method
        named = [name for code in _nested(method.__code__) for name in code.co_names if name not in seen]
        names += named
        seen.update(named)


def _of_globals(label: str, functions: Sequence[FunctionType], known: Mapping[int, Holder]) -> Iterator[Holder]:
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
        return not _is_foreign(value.__module__)
    return isinstance(value, Tensor) or not (type(value) in _LEAVES or isinstance(value, _UNTOUCHED))
