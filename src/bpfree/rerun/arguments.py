"""The arguments of a forward pass, taken apart: also tensors that objects among them hold out of sight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from bpfree.rerun.find_holders import objects_among
from bpfree.rerun.holders import Holder
from bpfree.rerun.module_state import State


@dataclass(frozen=True)
class Arguments:
    """The arguments of one forward pass, taken apart.

    Attributes:
        flat: What they hold; last the tensors that want a gradient and that objects among them hold (a graph's
            ``Data``, a dataclass, a cache).
        form: How they are put together again.
        hidden: For every one of these last tensors the places where it lies.
        outside: Where in ``flat`` the tensors are that want a gradient.
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
        """Those that hold numbers."""
        return [entry for entry in self.flat if isinstance(entry, Tensor)]

    def put_together(self, flat: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with these entries, but for those that objects hold."""
        together: tuple[tuple[Any, ...], dict[str, Any]] = tree_unflatten(flat[: self.form.num_leaves], self.form)
        return together

    def lend(self, flat: Sequence[Any]) -> None:
        """Put those of these entries that objects hold into the objects."""
        for value, places in zip(flat[self.form.num_leaves :], self.hidden, strict=True):
            for holder, key in places:
                holder.replace(key, value)

    def take_back(self, lent: Sequence[Any]) -> None:
        """Put the tensors themselves back where ``lent`` still lies in their place."""
        before, now = self.flat[self.form.num_leaves :], lent[self.form.num_leaves :]
        for value, other, places in zip(before, now, self.hidden, strict=True):
            for holder, key in places:
                if any(place == key and held is other for place, held in holder.entries()):
                    holder.replace(key, value)

    def again(self) -> tuple[Sequence[Any], list[Tensor]]:
        """What the arguments hold in another run, and the leaves in it that stand for ``outside``."""
        flat = list(self.flat)
        for place in self.outside:
            flat[place] = flat[place].detach().requires_grad_()
        return flat, [flat[place] for place in self.outside]


def holders_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sequence[Holder]:
    """The places in the objects among the arguments, where a model may leave its loss terms too."""
    objects = objects_among(args, kwargs)
    return State(objects).holders if objects else ()


def _hidden(objects: Mapping[Any, Any], flat: Sequence[Any]) -> dict[int, list[tuple[Holder, Any, Tensor]]]:
    """The places of tensors that want a gradient and are not in ``flat``, by the tensor."""
    seen = {id(entry) for entry in flat if isinstance(entry, Tensor)}
    found: dict[int, list[tuple[Holder, Any, Tensor]]] = {}
    for holder in State(objects).holders:
        for key, tensor in holder.tensors:
            if tensor.requires_grad and id(tensor) not in seen:
                found.setdefault(id(tensor), []).append((holder, key, tensor))
    return found
