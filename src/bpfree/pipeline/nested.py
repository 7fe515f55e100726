"""State as a list of tensors and a text that says how they were nested: nothing in it can be executed.

Plain values stand in the JSON text as they are; everything else is a list that begins with its kind.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bpfree.axes.memory_format import format_of
from bpfree.errors import StateError

Json: TypeAlias = "bool | int | float | str | list[Any] | None"

_MAPPINGS: dict[str, type[dict[Any, Any]]] = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}
_SEQUENCES: dict[str, type[list[Any]] | type[tuple[Any, ...]]] = {"list": list, "tuple": tuple}
_FORMATS = {str(one): one for one in (torch.channels_last, torch.channels_last_3d)}


def take_apart(state: Any) -> tuple[Json, dict[str, Tensor]]:
    """Return the structure of ``state``, and its tensors by the path to each.

    Raises:
        StateError: It holds something that is neither a tensor, a plain value, nor a list, tuple or dict of them.
    """
    tensors: dict[str, Tensor] = {}
    return _structure(state, "", tensors), tensors


def put_together(structure: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the state again. A structure that :func:`take_apart` did not make may raise any error."""
    if not isinstance(structure, list):
        return structure
    kind, *rest = structure
    if kind == "tensor":
        return _tensor(tensors, *rest)
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](put_together(entry, tensors) for entry in rest)
    found: Any = _MAPPINGS[kind]({put_together(key, tensors): put_together(value, tensors) for key, value in rest[1:]})
    if rest[0] is not None:
        found._metadata = put_together(rest[0], tensors)
    return found


def _structure(value: Any, path: str, tensors: dict[str, Tensor]) -> Json:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if type(value) in (Tensor, nn.Parameter, nn.Buffer):
        return _leaf(value, path, tensors)
    for kind, of in _SEQUENCES.items():
        if type(value) is of:
            return [kind, *_entries(enumerate(value), path, tensors)]
    for kind, mapping in _MAPPINGS.items():
        if type(value) is mapping:
            # What nn.Module.state_dict() keeps beside the tensors: the versions of its modules.
            beside = _structure(getattr(value, "_metadata", None), f"{path}#", tensors)
            keys = [_structure(key, f"{path}#", tensors) for key in value]
            return [kind, beside, *map(list, zip(keys, _entries(value.items(), path, tensors), strict=True))]
    raise StateError(
        f"the state to be saved holds a {type(value).__name__} at {path.lstrip('/')!r}: a checkpoint takes tensors, "
        "numbers, texts, and lists, tuples and dictionaries of them. Convert it in the part's state_dict()."
    )


def _entries(pairs: Iterable[tuple[Any, Any]], path: str, tensors: dict[str, Tensor]) -> list[Json]:
    return [_structure(value, f"{path}/{key}", tensors) for key, value in pairs]


def _leaf(value: Tensor, path: str, tensors: dict[str, Tensor]) -> Json:
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise StateError(
            f"the state to be saved holds at {path.lstrip('/')!r} a tensor that is sparse, quantized or without "
            "numbers: a checkpoint takes plain tensors. Convert it in the part's state_dict()."
        )
    name = path.lstrip("/")
    while name in tensors:  # keys of a dictionary may be alike as texts: 1 and "1"
        name += "~"
    plain = value.detach()
    tensors[name] = torch.view_as_real(plain.resolve_conj()) if plain.is_complex() else plain.resolve_neg()
    form = str(format_of(plain))
    return ["tensor", name, form if form in _FORMATS else None, plain.is_complex(), str(plain.device)]


def _tensor(tensors: Mapping[str, Tensor], name: str, form: str | None, is_complex: bool, device: str) -> Tensor:
    tensor = tensors[name]
    if is_complex:
        tensor = torch.view_as_complex(tensor)
    if form is not None:
        tensor = tensor.to(memory_format=_FORMATS[form])
    return tensor.to(_present(torch.device(device)))


def _present(device: torch.device) -> torch.device:
    """Return ``device``, or the nearest to it that this machine has."""
    if not torch.accelerator.is_available() or torch.accelerator.current_accelerator(True).type != device.type:  # type: ignore[union-attr]
        return torch.device("cpu")
    count, index = torch.accelerator.device_count(), device.index or 0
    return torch.device(device.type, index if index < count else torch.accelerator.current_device_index())
