"""Find the places where a model, its hooks and the arguments of a pass keep things."""

from __future__ import annotations

import pickle
import random
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bpfree.errors import UnsupportedLayerError
from bpfree.feedback.lazy_buffers import LazyBuffers
from bpfree.rerun.holders import (
    MANY,
    Arguments,
    Attributes,
    Collection,
    Entries,
    Fixed,
    Holder,
    Items,
    Members,
    ModuleAttributes,
    Numbers,
    RuleBuffers,
    Slots,
    array_holder,
)
from bpfree.rerun.holders_of_code import LEAVES, UNTOUCHED, code_holders, function_holder, is_foreign, is_ours, known_or

_PLAIN = (Tensor, nn.Parameter)
"""Classes of tensors that have no attributes of their own."""


def is_leaf(value: Any) -> bool:
    """Return whether ``value`` cannot hold other objects. Tensors count as such values too."""
    return type(value) in LEAVES or isinstance(value, Tensor)


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
        (key, value)
        for key, value in (entries if holder.can_replace else ())
        if isinstance(value, Tensor) and _is_state(holder.name(key), value)
    ]
    found = [child for key, value in entries if (child := _place(holder, key, value, known)) is not None]
    found += _of_tensors(holder, entries, known)
    if isinstance(holder, ModuleAttributes):
        found += _of_module(holder, known)
    holder.children = [*found, *code_holders(holder, known)]


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
        return None if LEAVES.issuperset(map(type, value)) else Fixed(above.name(key), value, above, key)
    return _made(above.name(key), value)


def _made(label: str, value: Any) -> Holder | None:
    if isinstance(value, nn.Module):
        return None if is_ours(type(value)) else ModuleAttributes(label, value)
    if isinstance(value, UNTOUCHED):
        return None
    if isinstance(value, dict):
        return Entries(label, value)
    if isinstance(value, list | deque):
        return Items(label, value)
    if isinstance(value, set | bytearray):
        return Members(label, value)
    if isinstance(value, FunctionType | MethodType | partial):
        return function_holder(label, value)
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
    if is_foreign(kind.__module__) or is_ours(kind):
        return None
    if isinstance(getattr(value, "__dict__", None), dict):
        return Attributes(label, value)
    names = [name for base in kind.__mro__ for name in _as_names(vars(base).get("__slots__", ()))]
    names = [name for name in names if not name.startswith("__")]
    return Slots(label, value, names) if names else None


def _as_names(slots: Any) -> Sequence[str]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _of_tensors(holder: Holder, entries: Sequence[tuple[Any, Any]], known: Mapping[int, Holder]) -> Iterator[Holder]:
    """Yield the places of the attributes that the user's code keeps on tensors, of a module on its parameters too."""
    weights = holder.held._parameters.items() if isinstance(holder, ModuleAttributes) else ()
    for key, tensor in (*weights, *entries):
        if not isinstance(tensor, Tensor) or not vars(tensor):
            continue
        if is_foreign(type(tensor).__module__) and type(tensor) not in _PLAIN:
            continue  # what a sharded weight keeps is torch's
        yield known_or(known, tensor, partial(Attributes, holder.name(key)))


# -- modules ---------------------------------------------------------------------------------------------------------


def _of_module(holder: ModuleAttributes, known: Mapping[int, Holder]) -> Iterator[Holder]:
    """Yield the places of the submodules and of the user's hooks."""
    module: Any = holder.held
    for name, child in module._modules.items():
        if child is not None and not is_ours(type(child)):
            yield known_or(known, child, partial(ModuleAttributes, holder.name(name)))
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
