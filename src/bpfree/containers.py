"""Containers of tensors, as modules return them: tuples, named tuples, lists, dictionaries and dataclasses."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor


def parts_of(value: Any) -> Mapping[Any, Any]:
    """Return what a container holds, by index, key or name of a field; nothing for what is no container."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, tuple | list):
        return dict(enumerate(value))
    if isinstance(value, MutableMapping):  # before dataclasses: transformers' outputs are both
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # A field may have no value yet.
        names = [field.name for field in dataclasses.fields(value)]
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    return {}


def tensors_in(value: Any) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """Yield every tensor with the keys that lead to it, depth first."""
    if isinstance(value, Tensor):
        yield (), value
        return
    for key, part in parts_of(value).items():
        yield from (((key, *path), tensor) for path, tensor in tensors_in(part))


def with_parts(value: Any, changed: Mapping[Any, Any]) -> Any:
    """Return a copy of a container, of its own type, with other parts at these keys; the rest are the same objects."""
    if isinstance(value, tuple):
        # Named tuples take their parts one by one, all others (torch.return_types too) as one sequence.
        make = getattr(type(value), "_make", type(value))
        return make(tuple({**parts_of(value), **changed}.values()))
    new = copy.copy(value)
    for key, part in changed.items():
        if isinstance(value, list | MutableMapping):
            new[key] = part
        else:
            object.__setattr__(new, key, part)  # a dataclass may be frozen
    return new
