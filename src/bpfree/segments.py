"""The layers that learn from each tap, read from the graph of one forward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bpfree.plan import Plan
from bpfree.tabulate import fold_names

_PAST = "(past the error)"
"""The source of the gradients that layers get from what a model returns or keeps, and that pass no error."""


@dataclass(frozen=True)
class Segments:
    """The layers between the taps.

    Attributes:
        learners: For every call of a tap, in forward order, the layers that its signal reaches; a module stands for all
            its layers.
        exact: For every error, the layers that it reaches itself.
        remarks: Remarks for the user on layers reached by several signals, by no error, and by nothing.
    """

    learners: Mapping[str, str]
    exact: Mapping[str, str]
    remarks: list[str]

    @staticmethod
    def of(
        plan: Plan,
        places: Sequence[str],
        taps: Sequence[Sequence[Tensor]],
        errors: Mapping[str, Sequence[Tensor]],
        past: Sequence[Tensor],
    ) -> Segments:
        """Name the leaves in which the graphs of the taps, cut as they are, of the errors, and past the errors end."""
        owners = {parameter: name.rpartition(".")[0] for name, parameter in plan.model.named_parameters()}
        holders = Counter(above for owner in set(owners.values()) for above in _lineage(owner or "(model)"))
        signals: dict[str, list[str]] = {}

        def named(source: str, leaves: Sequence[Tensor]) -> str:
            reached = set(leaves)
            layers = _unique(owners[parameter] or "(model)" for parameter in owners if parameter in reached)
            for layer in layers:
                signals.setdefault(layer, []).append(source)
            return ", ".join(_whole(layers, holders)) or "nothing"

        learners = {place: named(place, leaves) for place, leaves in zip(places, taps, strict=True)}
        exact = {name: named(name or "(output)", leaves) for name, leaves in errors.items()}
        named(_PAST, past)
        only_past = [layer for layer, sources in signals.items() if sources == [_PAST]]
        trained = _unique(owner for parameter, owner in owners.items() if parameter.requires_grad)
        missed = [layer for layer in trained if layer and layer not in signals]
        remarks = [*_added(signals), *_past(_whole(only_past, holders)), *_missed(_whole(missed, holders), plan)]
        return Segments(learners, exact, remarks)


def _added(signals: dict[str, list[str]]) -> list[str]:
    return [
        f"{layer}: the signals of {', '.join(fold_names(sources))} add up (a path leads around the cut, or a weight is "
        "shared)."
        for layer, sources in signals.items()
        if len(sources) > 1
    ]


def _past(layers: Sequence[str]) -> list[str]:
    if not layers:
        return []
    return [f"No error passes {', '.join(fold_names(layers))}: exact gradient, above the error or on a path beside it."]


def _missed(layers: Sequence[str], plan: Plan) -> list[str]:
    if not layers:
        return []
    streams = ", or on a path beside the error, of which streaming stores no graph" if plan.streaming else ""
    return [
        f"No signal reaches {', '.join(fold_names(layers))}: not used in this forward pass, or below a cut{streams}."
    ]


def _whole(layers: Sequence[str], holders: Mapping[str, int]) -> list[str]:
    """Put the name of a module, the outermost one, in the place of its layers where these are all of several.

    Args:
        layers: The names of layers.
        holders: For every module the number of those in it, itself included, that have parameters of their own.
    """
    present = Counter(above for layer in layers for above in _lineage(layer))
    complete = {name for name, count in present.items() if 1 < count == holders[name]}
    return _unique(next((above for above in _lineage(layer) if above in complete), layer) for layer in layers)


def _lineage(name: str) -> list[str]:
    """Return the names of the modules around a module, from the outside in, and its own."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def graph_nodes(*roots: Tensor, stops: Collection[Any] = ()) -> Iterator[Any]:
    """Yield the nodes of the graph of ``roots``, each once; the search does not go on below a node of ``stops``."""
    seen: set[Any] = set()
    open_nodes: list[Any] = [root.grad_fn for root in roots]
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        if node not in stops:
            open_nodes.extend(following for following, _ in node.next_functions)


@dataclass(frozen=True)
class Reach:
    """The part of a graph that a backward pass reaches.

    Attributes:
        leaves: The leaf tensors that it would reach, each once.
        inner: The nodes of the graph that it passes.
    """

    leaves: list[Tensor]
    inner: set[Any]

    def without(self, leaves: Sequence[Tensor]) -> Reach:
        """Return the same without these leaves."""
        left_out = set(leaves)
        return Reach([leaf for leaf in self.leaves if leaf not in left_out], self.inner)

    @classmethod
    def of(cls, *roots: Tensor) -> Reach:
        """Return the reach of a backward pass from ``roots``."""
        # Not by graph_nodes(): this runs in every training step, and a generator makes it half as slow again.
        # A root may be a leaf itself: a tap that hands on an argument of the model as it is.
        found: dict[Tensor, None] = {root: None for root in roots if root.is_leaf and root.requires_grad}
        seen: set[Any] = set()
        open_nodes: list[Any] = [root.grad_fn for root in roots]
        while open_nodes:
            node = open_nodes.pop()
            if node is None or node in seen:
                continue
            if hasattr(node, "variable"):
                found[node.variable] = None
                continue
            seen.add(node)
            open_nodes.extend(following for following, _ in node.next_functions)
        return cls(list(found), seen)


def first_overlap(parts: Iterable[set[Any]]) -> int | None:
    """Return the number of the first of these sets that has an entry of one before it; None if none has."""
    seen: set[Any] = set()
    for number, part in enumerate(parts):
        if not seen.isdisjoint(part):
            return number
        seen |= part
    return None
