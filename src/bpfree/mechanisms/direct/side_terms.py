"""Loss terms besides the error: what a model returns or keeps on itself, and what was made of a tap's output.

A balance term kept on a router, a penalty on hidden states, the loss of a side head: their gradients must reach the
tap's own segment exactly, while the error's own gradient ends behind the tap. Autograd adds both up before they come
to the tap. So a tap that such a term uses hands on a ``Gate``, which no gradient passes, and the term leaves the
model through a :class:`SideTerm`, which fetches its part of the gradient in front of the gate and gives it to the tap's
output.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from bpfree.errors import OptionError
from bpfree.mechanisms.autograd import Fetching, Gate, first_order_only
from bpfree.segments import graph_nodes


@dataclass(frozen=True)
class SoftTap:
    """A tap whose numbers a side term uses.

    Attributes:
        edge: The gate's place in the graph.
        output: What the gradient in front of the gate is for: the tap's output with the graph of its segment.
    """

    edge: GradientEdge
    output: Tensor

    @classmethod
    def of(cls, handed_on: Tensor, output: Tensor) -> SoftTap:
        """Note the gate that ``handed_on`` has just come from."""
        return cls(get_gradient_edge(handed_on), output)


class SideTerm(torch.autograd.Function):
    """Identity on a side term; in backward the taps that it uses get their part of its gradient."""

    @staticmethod
    def forward(ctx: Any, term: Tensor, taps: Sequence[SoftTap], fetching: Fetching, *inputs: Tensor) -> Tensor:
        """Return ``inputs[0]``, which is ``term``; the others are the taps' outputs."""
        ctx.term, ctx.taps, ctx.fetching = term, taps, fetching
        return term.detach()

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Hand the gradient on, and fetch what of it arrives at the gates."""
        (grad,) = grads
        edges = [tap.edge for tap in ctx.taps]
        ctx.fetching.under_way = True
        try:
            # The graph is run again by the backward pass under way.
            found = torch.autograd.grad(ctx.term, edges, grad, retain_graph=True, allow_unused=True)
        finally:
            ctx.fetching.under_way = False
        return None, None, None, grad, *found


def fetched_through(outputs: Mapping[str, Sequence[Tensor]], terms: Iterable[Tensor]) -> set[str]:
    """Return the names of those ``outputs`` through which a side term among ``terms`` fetches a gradient for taps.

    Backward hooks there are called once more than by backpropagation.
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
    """``term`` as it is; its gradient also reaches the segments of ``taps``, which it was made from."""
    result: Tensor = SideTerm.apply(term, taps, fetching, term, *(tap.output for tap in taps))  # type: ignore[no-untyped-call]
    return result


class RefusedTerm(torch.autograd.Function):
    """Identity on a side term that the way of the pass has no gradient for: a loss of it is refused by name."""

    @staticmethod
    def forward(ctx: Any, term: Tensor) -> Tensor:
        """Return the same numbers."""
        return term.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        """Raise OptionError."""
        raise OptionError(
            "a loss was made of a tensor that the model returns, or keeps on itself, besides its output, and window= "
            "has no gradient for it. Leave the window out: the plain rule teaches the layers below it exactly."
        )


def refused(term: Tensor) -> Tensor:
    """``term``, of which no loss may be made."""
    result: Tensor = RefusedTerm.apply(term)  # type: ignore[no-untyped-call]
    return result


def joined_to_taps(taps: Sequence[SoftTap], exits: Collection[Any], fetching: Fetching, term: Tensor) -> Tensor | None:
    """``term`` with its gradients for the segments of those ``taps`` that it was made of; None where there are none.

    Args:
        taps: The taps that side terms may use.
        exits: The nodes through which errors arrive: what lies below them is not the term's.
        fetching: The pass's.
        term: A tensor with a graph.
    """
    stops: dict[Any, SoftTap | None] = {**{tap.edge.node: tap for tap in taps}, **dict.fromkeys(exits)}
    used = [tap for node in nodes_below(term, stops) if (tap := stops[node]) is not None]
    return with_side_gradients(term, used, fetching) if used else None


def has_nodes_in(tensor: Tensor, inner: Collection[Any], exits: Collection[Any]) -> bool:
    """Whether the graph of ``tensor`` has a node in ``inner`` that is not behind one of ``exits``."""
    return any(node in inner and node not in exits for node in graph_nodes(tensor, stops=exits))


def nodes_below(tensor: Tensor, stops: Collection[Any]) -> Iterator[Any]:
    """The nodes of ``tensor``'s graph that are in ``stops``, each once; none that lies below another one alone."""
    return (node for node in graph_nodes(tensor, stops=stops) if node in stops)
