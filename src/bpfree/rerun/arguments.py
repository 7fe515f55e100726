"""The arguments of a forward pass as a flat list, together with the tensors inside objects among the arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from bpfree.rerun.find_holders import objects_among
from bpfree.rerun.holders import Holder
from bpfree.rerun.module_state import State

Call: TypeAlias = tuple[tuple[Any, ...], Mapping[str, Any]]
"""The arguments and keyword arguments of one call of a module."""


@dataclass(frozen=True)
class Arguments:
    """The arguments of one forward pass as a flat list.

    Attributes:
        flat: The entries. Tensors that require a gradient and lie inside an object (a graph's ``Data``, a dataclass, a
            cache) come last.
        form: The structure that turns the entries into arguments again.
        hidden: For every tensor inside an object, the places where it lies.
        outside: The numbers of the entries in ``flat`` that are tensors and require a gradient.
    """

    flat: Sequence[Any]
    form: TreeSpec
    hidden: Sequence[Sequence[tuple[Holder, Any]]]
    outside: Sequence[int]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        """Take the arguments apart."""
        flat, form = tree_flatten((args, dict(kwargs)))
        objects = objects_among(args, kwargs)
        hidden = _hidden(objects, flat) if objects else {}
        flat += [places[0][2] for places in hidden.values()]
        outside = [place for place, entry in enumerate(flat) if isinstance(entry, Tensor) and entry.requires_grad]
        return cls(flat, form, [[(holder, key) for holder, key, _ in places] for places in hidden.values()], outside)

    def tensors(self) -> list[Tensor]:
        """Return the entries that are tensors."""
        return [entry for entry in self.flat if isinstance(entry, Tensor)]

    def put_together(self, flat: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with these entries. Tensors inside objects are not exchanged: see :meth:`lend`."""
        together: tuple[tuple[Any, ...], dict[str, Any]] = tree_unflatten(flat[: self.form.num_leaves], self.form)
        return together

    def lend(self, flat: Sequence[Any]) -> None:
        """Put the last entries of ``flat`` into the objects that hold such tensors."""
        for value, places in zip(flat[self.form.num_leaves :], self.hidden, strict=True):
            for holder, key in places:
                holder.replace(key, value)

    def take_back(self, lent: Sequence[Any]) -> None:
        """Put the original tensors back wherever a tensor of ``lent`` still lies in their place."""
        before, now = self.flat[self.form.num_leaves :], lent[self.form.num_leaves :]
        for value, other, places in zip(before, now, self.hidden, strict=True):
            for holder, key in places:
                if any(place == key and held is other for place, held in holder.entries()):
                    holder.replace(key, value)

    def again(self) -> tuple[Sequence[Any], list[Tensor]]:
        """Return the entries for another run, and the leaves among them that stand for ``outside``."""
        flat = list(self.flat)
        for place in self.outside:
            flat[place] = flat[place].detach().requires_grad_()
        return flat, [flat[place] for place in self.outside]


def holders_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sequence[Holder]:
    """Return the places in the objects among the arguments: a model may store loss terms there too."""
    objects = objects_among(args, kwargs)
    return State(objects).holders if objects else ()


def _hidden(objects: Mapping[Any, Any], flat: Sequence[Any]) -> dict[int, list[tuple[Holder, Any, Tensor]]]:
    """Return the places of tensors that require a gradient and are not in ``flat``, grouped by tensor."""
    seen = {id(entry) for entry in flat if isinstance(entry, Tensor)}
    found: dict[int, list[tuple[Holder, Any, Tensor]]] = {}
    for holder in State(objects).holders:
        for key, tensor in holder.tensors:
            if tensor.requires_grad and id(tensor) not in seen:
                found.setdefault(id(tensor), []).append((holder, key, tensor))
    return found
