"""State that exists only after the first forward pass, and still saves and loads like any other."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.errors import StateError

_TWINS: weakref.WeakKeyDictionary[LazyBuffers, weakref.WeakSet[LazyBuffers]] = weakref.WeakKeyDictionary()
"""Deep copies, by what they are copies of; not an attribute, so that no copy and no pickle takes them along."""


REQUIRES_NO_GRADIENT = (
    "Its requires_grad is False, because the rule makes its gradient and not autograd: [p for p in parameters if "
    "p.requires_grad] leaves it out."
)
"""The sentence that a warning adds where no optimizer has the feedback."""


class LazyBuffers(nn.Module):
    """Named tensors that are drawn when their shapes are known.

    They are buffers: they move with ``.to()``, are saved by ``state_dict()``, and loading them before the first
    forward pass creates them. Names may hold dots, as modules' names do. ``numbers`` are integers saved beside
    them (seeds, counters), read without asking a device; those that are not there from the beginning are as late.

    An ``nn.Parameter`` is kept as one. :meth:`reserve` makes one that has no numbers yet, for whoever must hold it
    before its shape is known (an optimizer); what is stored under its name later goes into that same object.

    A deep copy grows with its original, so that averages of a model (``AveragedModel``, loops over ``state_dict()``)
    that were begun before the first forward pass go on behind it. What the original draws takes room in the copy, with
    the same numbers; the copy still draws for itself when it trains, and keeps those numbers if their shape is right.

    Attributes:
        changes: The number of times that something has been stored, forgotten or loaded.
    """

    def __init__(self, **numbers: int) -> None:
        super().__init__()
        self.numbers = numbers
        self._lasting = frozenset(numbers)
        self._grown: set[str] = set()
        self.changes = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> LazyBuffers:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__dict__, memo))  # type: ignore[no-untyped-call]
        _TWINS.setdefault(self, weakref.WeakSet()).add(twin)
        return twin

    def reserve(self, name: str, like: Tensor, dims: int) -> None:
        """Make an empty parameter on ``like``'s device and in its precision; autograd does not compute its gradient.

        It has ``dims`` dimensions already: some optimizers ask for matrices (Muon).
        """
        empty = torch.empty((0,) * dims, dtype=like.dtype, device=like.device)
        self.register_parameter(key_of(name), nn.Parameter(empty, requires_grad=False))

    def count(self, name: str) -> int:
        """Add one to the number ``name``, which begins at zero, and return it."""
        if name not in self.numbers:
            self._begin_counting(name)
        self.numbers[name] += 1
        return self.numbers[name]

    def _begin_counting(self, name: str) -> None:
        self.numbers.setdefault(name, 0)
        for twin in _TWINS.get(self, ()):
            twin._begin_counting(name)

    def _find(self, name: str) -> Tensor | None:
        key = key_of(name)
        tensor = self._buffers.get(key)
        if tensor is None:
            tensor = self._parameters.get(key)
        return tensor if tensor is not None and tensor.numel() and name not in self._grown else None

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._find(name)
        if tensor is None:
            raise KeyError(f"nothing is stored for {name!r}; there are: {', '.join(self) or 'none yet'}")
        return tensor

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        if name in self._grown:
            self._grown.discard(name)
            found = self._find(name)
            if found is not None and found.shape == tensor.shape:
                return
        self._store(name, tensor)
        for twin in _TWINS.get(self, ()):
            twin._grow(name, tensor)

    def _grow(self, name: str, tensor: Tensor) -> None:
        """Make room for what the original has drawn."""
        if name not in self:
            twin = tensor.detach().clone()
            self[name] = nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin
            self._grown.add(name)

    def _store(self, name: str, tensor: Tensor) -> None:
        self.changes += 1
        reserved = self._parameters.get(key_of(name))
        if reserved is not None:
            reserved.data = tensor.detach().to(reserved.device)
        elif isinstance(tensor, nn.Parameter):
            self.register_parameter(key_of(name), tensor)
        else:
            self.register_buffer(key_of(name), tensor)

    def __delitem__(self, name: str) -> None:
        """Forget what is stored or reserved for ``name``, if anything is."""
        self.changes += 1
        self._buffers.pop(key_of(name), None)
        self._parameters.pop(key_of(name), None)
        self._grown.discard(name)

    def __iter__(self) -> Iterator[str]:
        names = (name_of(key) for key in (*self._buffers, *self._parameters))
        return (name for name in names if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + key_of(name): torch.tensor(value) for name, value in self.numbers.items()})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self.changes += 1
        self._load_numbers(state_dict, prefix)
        self._grown.clear()
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
    """Return an empty tensor on ``like``'s device, in its precision or in float32, for tensors that take small steps.

    A step of less than a two-hundredth would be lost in a bfloat16 number.
    """
    return torch.empty(0, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)


@lru_cache(maxsize=4096)
def key_of(name: str) -> str:
    """Return the key under which a tensor, or a module, of this name is stored: without dots."""
    # A buffer's name holds no dots. Escaped as in RFC 6901, for modules may have slashes in their names.
    return name.replace("~", "~0").replace("/", "~1").replace(".", "/")


def name_of(key: str) -> str:
    """Return the name that a tensor of :class:`LazyBuffers` is stored under, from its key in a ``state_dict``."""
    return key.replace("/", ".").replace("~1", "/").replace("~0", "~")


def _is_number(value: Tensor) -> bool:
    return value.dtype == torch.int64 and value.dim() == 0
