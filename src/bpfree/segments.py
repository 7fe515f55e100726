"""Which layers learn from which tap, read off the graph of one forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bpfree.plan import Plan
from bpfree.taps import Site


@dataclass(frozen=True)
class Segments:
    """What lies between the taps.

    Attributes:
        learners: For every tap, in forward order, and last for the output: the layers that its signal reaches.
        remarks: What a user should know: layers reached by several signals, layers reached by none.
    """

    learners: list[str]
    remarks: list[str]

    @staticmethod
    def of(plan: Plan, sites: Sequence[Site], leaves: Sequence[Sequence[Tensor]]) -> Segments:
        """Name what the graphs of the taps, cut as they are, and of the output end in."""
        owners = {parameter: name.rpartition(".")[0] for name, parameter in plan.model.named_parameters()}
        names = [*(site.name for site in sites), plan.error_name or "(output)"]
        reached = [set(found) for found in leaves]
        signals: dict[str, list[str]] = {}
        learners: list[str] = []
        for name, parameters in zip(names, reached, strict=True):
            layers = _unique(owners.get(parameter, "") or "(model)" for parameter in owners if parameter in parameters)
            learners.append(", ".join(layers) or "nothing")
            for layer in layers:
                signals.setdefault(layer, []).append(name)
        remarks = _added(signals)
        if not plan.error_name:  # what lies above error_at is not known yet, and learns exactly
            remarks += _missed(owners, signals)
        return Segments(learners, remarks)


def _added(signals: dict[str, list[str]]) -> list[str]:
    return [
        f"{layer}: the signals of {', '.join(sources)} add up (a path leads around the cut, or a weight is shared)."
        for layer, sources in signals.items()
        if len(sources) > 1
    ]


def _missed(owners: dict[nn.Parameter, str], signals: dict[str, list[str]]) -> list[str]:
    missed = _unique(name for parameter, name in owners.items() if parameter.requires_grad)
    missed = [layer for layer in missed if layer and layer not in signals]
    return [f"No signal reaches {', '.join(missed)}: not used in this forward pass."] if missed else []


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


@dataclass(frozen=True)
class Reach:
    """How far a backward pass gets.

    Attributes:
        leaves: The leaf tensors that it would reach, each once.
        inner: The nodes of the graph on its way.
    """

    leaves: list[Tensor]
    inner: set[Any]

    @classmethod
    def of(cls, *roots: Tensor) -> Reach:
        """The reach of a backward pass from ``roots``."""
        found: dict[Tensor, None] = {}
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
