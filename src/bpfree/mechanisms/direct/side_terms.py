"""Side terms: loss terms besides the error, made of tensors that a model returns or keeps on itself.

Examples are a balance term kept on a router, a penalty on hidden states, and the loss of a side head. The gradient of
such a term must reach the tap's segment exactly, while the gradient of the error must stop behind the tap. Autograd
adds both up before they come to the tap. So a tap that such a term uses hands on its output through a ``Gate``, which
stops every gradient. The term leaves the model through a :class:`SideTerm`, which fetches the term's own part of the
gradient in front of the gate and gives it to the tap's output.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from bpfree.errors import BpfreeError
from bpfree.mechanisms.autograd import Fetching, Gate, first_order_only
from bpfree.segments import graph_nodes


@dataclass(frozen=True)
class SoftTap:
    """A tap whose numbers a side term uses.

    Attributes:
        edge: The gate's edge in the graph.
        output: The tap's output with the graph of its segment: it gets the gradient that arrives at the gate.
    """

    edge: GradientEdge
    output: Tensor

    @classmethod
    def of(cls, handed_on: Tensor, output: Tensor) -> SoftTap:
        """Note the gate that has just made ``handed_on``."""
        return cls(get_gradient_edge(handed_on), output)


class SideTerm(torch.autograd.Function):
    """Identity on a side term; in backward, the taps that the term uses get their part of its gradient."""

    @staticmethod
    def forward(ctx: Any, term: Tensor, taps: Sequence[SoftTap], fetching: Fetching, *inputs: Tensor) -> Tensor:
        """Return ``inputs[0]``, which is ``term``; the others are the taps' outputs."""
        ctx.term, ctx.taps, ctx.fetching = term, taps, fetching
        return term.detach()

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Hand the gradient on, and fetch the part of it that arrives at the gates."""
        (grad,) = grads
        edges = [tap.edge for tap in ctx.taps]
        try:
            ctx.fetching.under_way = True
            # The running backward pass runs this graph once more.
            found = torch.autograd.grad(ctx.term, edges, grad, retain_graph=True, allow_unused=True)
        finally:
            ctx.fetching.under_way = False
        return None, None, None, grad, *found


def fetched_through(outputs: Mapping[str, Sequence[Tensor]], terms: Iterable[Tensor]) -> set[str]:
    """Return the names of the ``outputs`` through which a side term among ``terms`` fetches a gradient for taps.

    Backward hooks on these modules are called once more than under backpropagation.
    """
    found: list[Any] = [node for node in graph_nodes(*terms) if isinstance(node, SideTerm._backward_cls)]
    below = {node for side in found for node in graph_nodes(side.term, stops={tap.edge.node for tap in side.taps})}
    return {
        name
        for name, tensors in outputs.items()
        if any(tensor.grad_fn in below and _is_behind_a_gate(tensor) for tensor in tensors)
    }


def _is_behind_a_gate(tensor: Tensor) -> bool:
    return any(isinstance(node, Gate._backward_cls) for node in graph_nodes(tensor))


def with_side_gradients(term: Tensor, taps: Sequence[SoftTap], fetching: Fetching) -> Tensor:
    """Return ``term``; its gradient also reaches the segments of ``taps``, from which the term was made."""
    result: Tensor = SideTerm.apply(term, taps, fetching, term, *(tap.output for tap in taps))  # type: ignore[no-untyped-call]
    return result


class RefusedTerm(torch.autograd.Function):
    """Identity on a side term for which this kind of pass has no gradient: a loss of it raises an error."""

    @staticmethod
    def forward(ctx: Any, refusal: Callable[[], BpfreeError], term: Tensor, anchor: Tensor) -> Tensor:
        """Return ``term``; with ``anchor`` it has a graph in any case."""
        ctx.refusal = refusal
        return term.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        """Raise the error."""
        raise ctx.refusal()


def refused(term: Tensor, refusal: Callable[[], BpfreeError]) -> Tensor:
    """Return ``term``; a loss of it raises the error that ``refusal`` makes."""
    result: Tensor = RefusedTerm.apply(refusal, term, torch.empty(0, requires_grad=True))  # type: ignore[no-untyped-call]
    return result


def joined_to_taps(taps: Sequence[SoftTap], exits: Collection[Any], fetching: Fetching, term: Tensor) -> Tensor | None:
    """Return ``term`` with gradients for the segments of the ``taps`` that it was made of; None if there are none.

    Args:
        taps: The taps that side terms may use.
        exits: The nodes through which errors arrive: nodes below them do not belong to the term.
        fetching: The mark of the pass.
        term: A tensor with a graph.
    """
    stops: dict[Any, SoftTap | None] = {**{tap.edge.node: tap for tap in taps}, **dict.fromkeys(exits)}
    used = [tap for node in nodes_below(term, stops) if (tap := stops[node]) is not None]
    return with_side_gradients(term, used, fetching) if used else None


def has_nodes_in(tensor: Tensor, inner: Collection[Any], exits: Collection[Any]) -> bool:
    """Return whether the graph of ``tensor`` has a node of ``inner`` that can be reached without passing ``exits``."""
    return any(node in inner and node not in exits for node in graph_nodes(tensor, stops=exits))


def nodes_below(tensor: Tensor, stops: Collection[Any]) -> Iterator[Any]:
    """Yield the nodes of ``stops`` in the graph of ``tensor``, each once, without those only reached through others."""
    return (node for node in graph_nodes(tensor, stops=stops) if node in stops)
