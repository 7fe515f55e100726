"""Loss terms besides the error: what a model returns or keeps on itself, and what was made of a tap's output.

A balance term kept on a router, a penalty on hidden states, the loss of a side head: their gradients must reach the
tap's own segment exactly, while the error's own gradient ends behind the tap. Autograd adds both up before they come
to the tap. So a tap that such a term uses hands on a :class:`Gate`, which no gradient passes, and the term leaves the
model through a :class:`SideTerm`, which fetches its part of the gradient in front of the gate and gives it to the tap's
output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from bpfree.mechanisms.once import once


@dataclass
class Fetching:
    """Whether a side term fetches its gradient just now: the error is then not to send signals.

    One for each pass. Not by thread: autograd runs parts of a backward pass on threads of its own.
    """

    under_way: bool = False


class Gate(torch.autograd.Function):
    """Identity on a leaf that wants a gradient; lets none through."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor) -> Tensor:
        """Return the same numbers as another tensor."""
        return leaf.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        """Let none through."""


def gated(output: Tensor) -> Tensor:
    """The numbers of a tap's output behind a gate."""
    handed_on: Tensor = Gate.apply(output.detach().requires_grad_())  # type: ignore[no-untyped-call]
    return handed_on


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
    @once
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


def with_side_gradients(term: Tensor, taps: Sequence[SoftTap], fetching: Fetching) -> Tensor:
    """``term`` as it is; its gradient also reaches the segments of ``taps``, which it was made from."""
    result: Tensor = SideTerm.apply(term, taps, fetching, term, *(tap.output for tap in taps))  # type: ignore[no-untyped-call]
    return result


def nodes_below(tensor: Tensor, stops: Mapping[Any, Any]) -> Iterator[Any]:
    """The nodes of ``tensor``'s graph that are in ``stops``, each once; none that lies below another one alone."""
    seen: set[Any] = set()
    open_nodes: list[Any] = [tensor.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in stops:
            yield node
            continue
        open_nodes.extend(following for following, _ in node.next_functions)
