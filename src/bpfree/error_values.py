"""The errors' places in a module's output: its floating point tensors, by the keys that lead to them.

A path joins keys with dots: ``""`` is the output itself, ``"0"`` the first part of a tuple or list, ``"logits"`` a key
of a dictionary or a field of a dataclass, ``"heads.policy"`` one of a dictionary within it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from torch import Tensor

from bpfree.containers import parts_of, tensors_in, with_parts
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
    for path, tensor in _walk(output):
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
    return (tensor for _, tensor in _walk(output))


def replace_errors(output: Any, replacements: Mapping[Path, Tensor]) -> Any:
    """Return ``output`` with other tensors at these paths, wherever the tensor that was there stands.

    Containers on the way are copies of the same type; ``output`` itself stays as it is.
    """
    here = error_tensors(output)
    return _replaced(output, {id(here[path]): tensor for path, tensor in replacements.items()})


def _walk(value: Any) -> Iterator[tuple[Path, Tensor]]:
    for keys, tensor in tensors_in(value):
        if tensor.is_floating_point():
            yield ".".join(map(str, keys)), tensor


def _replaced(value: Any, by_identity: Mapping[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return by_identity.get(id(value), value)
    before = parts_of(value)
    after = {key: _replaced(part, by_identity) for key, part in before.items()}
    changed = {key: part for key, part in after.items() if part is not before[key]}
    return with_parts(value, changed) if changed else value
