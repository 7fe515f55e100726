"""The errors' places in a module's output: its floating point tensors, by the keys that lead to them.

A path joins keys with dots: ``""`` is the output itself, ``"0"`` the first part of a tuple or list, ``"logits"`` a key
of a dictionary or a field of a dataclass, ``"heads.policy"`` one of a dictionary within it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, TypeAlias

from torch import Tensor

from bpfree.errors import ErrorPlacementError

Path: TypeAlias = str
"""The keys that lead to a tensor, joined with dots."""


def error_tensors(output: Any) -> dict[Path, Tensor]:
    """Find the floating point tensors in ``output``, by path and in its own order.

    Looked into are tuples, named tuples, lists, dictionaries, dataclasses, and these within each other. A tensor that
    stands in several places is one error, under the first of its paths.

    Raises:
        ErrorPlacementError: Two tensors have one path: ``{"a.b": ..., "a": {"b": ...}}``.
    """
    found: dict[Path, Tensor] = {}
    seen: set[int] = set()
    for path, tensor in _walk(output, ""):
        if id(tensor) in seen:
            continue
        if path in found:
            raise ErrorPlacementError(
                f"the output holds two tensors at {path!r}: keys are joined with dots. Rename one of the keys."
            )
        seen.add(id(tensor))
        found[path] = tensor
    return found


def tensors_of(output: Any) -> Iterator[Tensor]:
    """Yield the floating point tensors in ``output``, once for each place where one stands."""
    return (tensor for _, tensor in _walk(output, ""))


def replace_errors(output: Any, replacements: Mapping[Path, Tensor]) -> Any:
    """Return ``output`` with other tensors at these paths, wherever the tensor that was there stands.

    Containers on the way are copies of the same type; ``output`` itself stays as it is.
    """
    here = error_tensors(output)
    return _replaced(output, {id(here[path]): tensor for path, tensor in replacements.items()})


def _walk(value: Any, path: Path) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield path, value
        return
    for key, part in _parts(value).items():
        yield from _walk(part, f"{path}.{key}" if path else str(key))


def _parts(value: Any) -> Mapping[Any, Any]:
    """What a container holds, by key; nothing for what is none."""
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


def _replaced(value: Any, by_identity: Mapping[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return by_identity.get(id(value), value)
    before = _parts(value)
    after = {key: _replaced(part, by_identity) for key, part in before.items()}
    changed = {key: part for key, part in after.items() if part is not before[key]}
    return _copy_with(value, after, changed) if changed else value


def _copy_with(value: Any, after: Mapping[Any, Any], changed: Mapping[Any, Any]) -> Any:
    """Return a copy of the container ``value``, of its own type, which holds the ``changed`` parts."""
    if isinstance(value, tuple):
        # Named tuples take their parts one by one, all others (torch.return_types too) as one sequence.
        make = getattr(type(value), "_make", type(value))
        return make(tuple(after.values()))
    new = copy.copy(value)
    for key, part in changed.items():
        if isinstance(value, list | MutableMapping):
            new[key] = part
        else:
            object.__setattr__(new, key, part)  # a dataclass may be frozen
    return new
