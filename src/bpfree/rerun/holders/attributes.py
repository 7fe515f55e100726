"""The attributes of objects and modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from operator import is_
from typing import Any

from torch import nn

from bpfree.rerun.holders.base import ABSENT, Holder

_STRUCTURE = frozenset(vars(nn.Module())) - {"training"}

_SIZES = frozenset({"in_features", "out_features", "in_channels", "out_channels", "num_features", "normalized_shape"})
"""Attributes that torch's layers have besides and that no pass changes."""


class Attributes(Holder):
    """The attributes of an object."""

    __slots__ = ("_attributes",)

    def __init__(self, label: str, held: object) -> None:
        self._attributes = vars(held)
        super().__init__(label, held)

    def copy(self) -> Any:
        """Copy what it holds now."""
        return self._attributes.copy()

    def matches(self, kept: Any) -> bool:
        """Return whether it holds the objects of this copy."""
        return _same(self._attributes, kept)

    def put(self, kept: Any) -> None:
        """Make it hold the objects of this copy."""
        _put(self._attributes, kept)

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return pairs of a key and the object there."""
        return list(self._attributes.items())

    def replace(self, key: Any, value: Any) -> None:
        """Put ``value`` in the place of the entry ``key``."""
        self._attributes[key] = value

    def name(self, key: Any) -> str:
        """Return the attribute's name."""
        return f"{self.label}.{key}".lstrip(".")


class ModuleAttributes(Attributes):
    """The attributes and buffers of a module, and which of its parameters have attributes of their own.

    Its submodules and hooks are looked at, but never changed.
    """

    __slots__ = ("_buffers", "_hooks", "_modules", "_pre_hooks", "_skipped")

    def __init__(self, label: str, held: nn.Module) -> None:
        self._buffers, self._modules = held._buffers, held._modules
        self._hooks, self._pre_hooks = held._forward_hooks, held._forward_pre_hooks
        # The attributes that every module, or every layer of torch, has come first and are not compared one by one.
        constant = {"training", *_STRUCTURE, *(_SIZES if type(held).__module__.startswith("torch.nn.") else ())}
        own = (number for number, key in enumerate(vars(held)) if key not in constant)
        self._skipped = next(own, len(vars(held)))
        super().__init__(label, held)

    def copy(self) -> Any:
        """Copy what it holds now."""
        hooks = len(self._hooks), len(self._pre_hooks)
        attributes = self._attributes.copy()
        compared = tuple(attributes.values())[self._skipped :]
        return attributes, compared, self._buffers.copy(), self._modules.copy(), *hooks, self._with_attributes()

    def matches(self, kept: Any) -> bool:
        """Return whether it holds the objects of this copy."""
        now = self._attributes
        attributes, compared, buffers, modules, _, _, with_attributes = kept
        if len(now) != len(attributes) or now.get("training") is not attributes.get("training"):
            return False
        if self.held._parameters and self._with_attributes() != with_attributes:
            return False
        if compared and not all(map(is_, islice(now.values(), self._skipped, None), compared)):
            return False
        return ((not self._buffers and not buffers) or _same(self._buffers, buffers)) and (
            not modules or _same(self._modules, modules)
        )

    def is_known(self) -> bool:
        """Return whether it has as many hooks and submodules as at the last look."""
        _, _, _, modules, hooks, pre_hooks, _ = self.kept
        return len(self._hooks) == hooks and len(self._pre_hooks) == pre_hooks and len(self._modules) == len(modules)

    def put(self, kept: Any) -> None:
        """Make it hold the objects of this copy."""
        _put(self._attributes, kept[0])
        _put(self._buffers, kept[2])
        for parameter in self.held._parameters.values():
            if type(parameter) is nn.Parameter and id(parameter) not in kept[-1]:
                vars(parameter).clear()

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return pairs of a name and the attribute or buffer there."""
        own = [(key, value) for key, value in self._attributes.items() if key not in _STRUCTURE]
        return [*own, *self._buffers.items()]

    def replace(self, key: Any, value: Any) -> None:
        """Put ``value`` in the place of the attribute or buffer ``key``."""
        (self._buffers if key in self._buffers else self._attributes)[key] = value

    def _with_attributes(self) -> list[int]:
        """Return the identities (``id``) of the parameters that have attributes of their own."""
        return [id(one) for one in self.held._parameters.values() if one is not None and one.__dict__]


class Slots(Holder):
    """The ``__slots__`` of an object."""

    __slots__ = ("_names",)

    def __init__(self, label: str, held: object, names: Sequence[str]) -> None:
        self._names = names
        super().__init__(label, held)

    def copy(self) -> Any:
        """Copy what it holds now."""
        return [getattr(self.held, name, ABSENT) for name in self._names]

    def matches(self, kept: Any) -> bool:
        """Return whether it holds the objects of this copy."""
        return all(map(is_, self.copy(), kept))

    def put(self, kept: Any) -> None:
        """Make it hold the objects of this copy."""
        for name, value in zip(self._names, kept, strict=True):
            if value is not ABSENT:
                object.__setattr__(self.held, name, value)
            elif hasattr(self.held, name):
                object.__delattr__(self.held, name)

    def entries(self) -> Iterable[tuple[Any, Any]]:
        """Return pairs of a slot's name and the object there."""
        return [(name, value) for name, value in zip(self._names, self.copy(), strict=True) if value is not ABSENT]

    def replace(self, key: Any, value: Any) -> None:
        """Put ``value`` into a slot."""
        object.__setattr__(self.held, key, value)

    def name(self, key: Any) -> str:
        """Return the slot's name."""
        return f"{self.label}.{key}".lstrip(".")


def _same(now: Mapping[Any, Any], kept: Mapping[Any, Any]) -> bool:
    return len(now) == len(kept) and (not now or all(map(is_, now.values(), kept.values())))


def _put(now: dict[Any, Any], kept: Mapping[Any, Any]) -> None:
    # Entry by entry: a thread that evaluates the model must never find it empty.
    for key, value in kept.items():
        if now.get(key, ABSENT) is not value:
            now[key] = value
    for key in [key for key in now if key not in kept]:
        del now[key]
