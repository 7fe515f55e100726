"""State that exists only after the first forward pass, and still saves and loads like any other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.errors import StateError


class LateBuffers(nn.Module):
    """Named tensors that are drawn when their shapes are known.

    They are buffers: they move with ``.to()``, are saved by ``state_dict()``, and loading them before the first
    forward pass creates them. Names may hold dots, as modules' names do. ``numbers`` are integers saved beside
    them (seeds, counters), read without asking a device; those that are not there from the beginning are as late.

    An ``nn.Parameter`` is kept as one. :meth:`reserve` makes one that has no numbers yet, for whoever must hold it
    before its shape is known (an optimizer); what is stored under its name later goes into that same object.
    """

    def __init__(self, **numbers: int) -> None:
        super().__init__()
        self.numbers = numbers
        self._lasting = frozenset(numbers)

    def reserve(self, name: str, like: Tensor) -> None:
        """Make an empty parameter on ``like``'s device and in its precision; autograd does not compute its gradient."""
        empty = torch.empty(0, dtype=like.dtype, device=like.device)
        self.register_parameter(key_of(name), nn.Parameter(empty, requires_grad=False))

    def _find(self, name: str) -> Tensor | None:
        tensor = self._buffers.get(key_of(name))
        if tensor is None:
            tensor = self._parameters.get(key_of(name))
        return tensor if tensor is not None and tensor.numel() else None

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._find(name)
        if tensor is None:
            raise KeyError(f"nothing is stored for {name!r}; there are: {', '.join(self) or 'none yet'}")
        return tensor

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        reserved = self._parameters.get(key_of(name))
        if reserved is not None:
            reserved.data = tensor.detach().to(reserved.device)
        elif isinstance(tensor, nn.Parameter):
            self.register_parameter(key_of(name), tensor)
        else:
            self.register_buffer(key_of(name), tensor)

    def __iter__(self) -> Iterator[str]:
        names = (name_of(key) for key in (*self._buffers, *self._parameters))
        return (name for name in names if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + key_of(name): torch.tensor(value) for name, value in self.numbers.items()})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self._load_numbers(state_dict, prefix)
        for name in (*self._buffers, *self._parameters):
            if prefix + name not in state_dict:
                raise StateError(f"the state has nothing for {prefix + name!r}: it is that of another model or rule.")
        for key, value in state_dict.items():
            name = key.removeprefix(prefix)
            if key.startswith(prefix) and "." not in name:
                self._make_room(key, name, value)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _load_numbers(self, state_dict: dict[str, Any], prefix: str) -> None:
        own = {key: key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)}
        found = {key: name for key, name in own.items() if "." not in name and _is_number(state_dict[key])}
        for late in self.numbers.keys() - self._lasting:
            del self.numbers[late]
        self.numbers.update({name_of(key): int(state_dict.pop(full)) for full, key in found.items()})

    def _make_room(self, key: str, name: str, value: Tensor) -> None:
        parameter = self._parameters.get(name)
        present = self._buffers.get(name) if parameter is None else parameter
        if present is None:
            self[name_of(name)] = torch.empty_like(value)
        elif parameter is not None and 0 in (parameter.numel(), value.numel()):
            # Reserved: drawn in one of the two, and not yet in the other.
            parameter.data = torch.empty_like(value, device=parameter.device)
        elif present.shape != value.shape:
            raise StateError(
                f"the saved {key!r} has shape {tuple(value.shape)}, this attachment's {tuple(present.shape)}: "
                "the state is that of another model, other taps or another output size."
            )


def at_least_single(like: Tensor) -> Tensor:
    """An empty tensor on ``like``'s device, in its precision or in float32: for what takes small steps.

    A step of less than a two-hundredth would be lost in a bfloat16 number.
    """
    return torch.empty(0, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)


def key_of(name: str) -> str:
    """The key under which a tensor, or a module, of this name is stored: without dots."""
    # A buffer's name holds no dots. Escaped as in RFC 6901, for modules may have slashes in their names.
    return name.replace("~", "~0").replace("/", "~1").replace(".", "/")


def name_of(key: str) -> str:
    """The name that a tensor of :class:`LateBuffers` is stored under, from its key in a ``state_dict``."""
    return key.replace("/", ".").replace("~1", "/").replace("~0", "~")


def _is_number(value: Tensor) -> bool:
    return value.dtype == torch.int64 and value.dim() == 0
