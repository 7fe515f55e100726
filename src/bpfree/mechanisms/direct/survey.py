"""The survey of a pass: its whole graph shows the taps below each error, and other uses of their outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bpfree.axes.channels import channel_axis
from bpfree.containers import tensors_in
from bpfree.error_values import error_tensors, replace_errors
from bpfree.errors import ErrorPlacementError
from bpfree.mechanisms.autograd import mark
from bpfree.mechanisms.base import reached_twice
from bpfree.mechanisms.direct.final_activation import FinalActivation
from bpfree.mechanisms.direct.forward_pass import Cut, TappedPass
from bpfree.mechanisms.direct.side_terms import has_nodes_in, nodes_below
from bpfree.segments import Reach, graph_nodes


def error_key(place: str, path: str) -> str:
    """Return the name of the error at ``path`` in the output of the module ``place``."""
    return ".".join(filter(None, (place, path)))


def errors_of(output: Any, is_cut: Callable[[str, Tensor], bool]) -> dict[str, Tensor]:
    """Return the tensors of an output at which errors arrive, by path.

    If there are several tensors, these are the floating point tensors that have a batch dimension, and that have a
    graph, or would have one without the cuts (``is_cut``).
    """
    if isinstance(output, Tensor):
        return {"": output} if output.is_floating_point() else {}
    return {
        path: tensor
        for path, tensor in error_tensors(output).items()
        if tensor.dim() and (tensor.requires_grad or is_cut(path, tensor))
    }


class SurveyPass(TappedPass):
    """A pass whose graph is whole, with a mark at every tap and every error.

    Args:
        at_tap: Called before each tap's mark is made.

    Attributes:
        taps: The marked outputs of the taps.
        marks: The marked errors.
        errors: The tensor of every error, before its mark.
        graphless: The calls of taps in parts that run without a graph.
        stand_ins: The nodes of the leaves that stand for outputs of taps below which nothing learns.
    """

    def __init__(self, at_tap: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self._at_tap = at_tap
        self._versions: list[int] = []
        self.taps: list[Tensor] = []
        self.errors: dict[str, Tensor] = {}
        self.marks: dict[str, Tensor] = {}
        self.graphless: list[str] = []
        self.stand_ins: set[Any] = set()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the taps' outputs and the errors with their names."""
        yield from zip(self.places, self.taps, strict=True)
        yield from self.errors.items()

    def cut(self, name: str, place: str, output: Tensor) -> Tensor:
        """Mark the output of a tap."""
        if not torch.is_grad_enabled():
            self.graphless.append(place)
            return output
        return super().cut(name, place, output)

    def _take(self, output: Tensor) -> Tensor:
        self._at_tap()
        marked = _marked(output)
        if not output.requires_grad:
            self.stand_ins.update(following for following, _ in marked.grad_fn.next_functions)  # type: ignore[union-attr]
        self.taps.append(marked)
        self._versions.append(marked._version)
        return marked

    def _cut_of_last(self) -> Cut:
        return _marked

    @property
    def is_overwritten(self) -> bool:
        """True if a tap's output was changed in place after the tap: gradients of this graph are wrong then."""
        return [tap._version for tap in self.taps] != self._versions

    @property
    def idle(self) -> set[str]:
        """The names of the taps that come right behind other taps: nothing between them learns."""
        marks = {tap.grad_fn for tap in self.taps}
        found = set()
        for name, tap in zip(self.names, self.taps, strict=True):
            below = list(graph_nodes(tap, stops=marks - {tap.grad_fn}))
            if marks.intersection(below[1:]) and not any(hasattr(node, "variable") for node in below):
                found.add(name)
        return found

    @property
    def exits(self) -> dict[Any, None]:
        """The nodes of the marked errors."""
        return {mark.grad_fn: None for mark in self.marks.values()}

    @property
    def _taken(self) -> int:
        """The number of the last error's node: autograd counts nodes in the order in which they are made."""
        return max((node._sequence_nr() for node in self.exits), default=0)

    def is_without_graph(self, term: Tensor) -> bool:
        """Return whether something learns from ``term`` by a way, around the errors, that ran before they were taken.

        A pass that stores no graph has none there.
        """
        exits, taken = self.exits, self._taken
        before = (node for node in graph_nodes(term, stops=exits) if node not in exits and node._sequence_nr() < taken)
        ends = (end for node in before for end, _ in node.next_functions if hasattr(end, "variable"))
        return any(end not in self.stand_ins for end in ends)

    def is_kept_behind(self, term: Tensor) -> bool:
        """Return whether ``term`` was made after the errors had been taken, and is partly without a graph."""
        node = term.grad_fn
        return node is not None and node._sequence_nr() > self._taken and self.is_without_graph(term)

    def reach_again(self, name: str, output: Any) -> Any:
        """Mark the errors of one place.

        Raises:
            ErrorPlacementError: The pass was at this place before.
        """
        if name in self.reached:
            raise reached_twice(name)
        self.reached.add(name)
        marks = {}
        for path, tensor in errors_of(output, lambda path, tensor: False).items():
            self.errors[error_key(name, path)] = tensor
            if tensor.requires_grad:
                marks[path] = self.marks[error_key(name, path)] = mark(tensor)
        return replace_errors(output, marks)


def _marked(output: Tensor) -> Tensor:
    # Also if nothing below learns: the graph then shows the uses of the tap's output.
    return mark(output if output.requires_grad else output.detach().requires_grad_())


@dataclass(frozen=True)
class Survey:
    """The facts that the whole graph of a pass shows.

    Attributes:
        places: The calls of taps.
        below: For every error, the calls of taps below it.
        soft: The calls of taps whose outputs a side term uses, without passing an error.
        sides: True if there are side terms at all: tensors that are returned or kept, and have a graph below an error.
        returned: The paths of the returned tensors.
        graphless_terms: The paths of the returned tensors that are partly without a graph in a pass that stores none.
        finals: For every error that a final softmax or sigmoid has made, this function.
        flat: The calls of taps with no layer between them and an error.
        graphless: The calls of taps in parts that run without a graph.
        outputs: The numbers at the errors.
        channels: The axes of the channels, of the taps' calls and of the errors; None where the graph does not show it.
    """

    places: frozenset[str]
    below: Mapping[str, frozenset[str]]
    soft: frozenset[str] = frozenset()
    sides: bool = False
    returned: frozenset[tuple[Any, ...]] = frozenset()
    graphless_terms: frozenset[tuple[Any, ...]] = frozenset()
    finals: Mapping[str, FinalActivation] = field(default_factory=dict)
    flat: frozenset[str] = frozenset()
    graphless: frozenset[str] = frozenset()
    outputs: dict[str, Tensor] = field(default_factory=dict)
    channels: Mapping[str, int | None] = field(default_factory=dict)

    @cached_property
    def unused(self) -> frozenset[str]:
        """The calls of taps that lie below no error."""
        return self.places.difference(*self.below.values())

    @cached_property
    def unreached(self) -> frozenset[str]:
        """The calls of taps that no signal can enter."""
        return self.unused | self.graphless

    @classmethod
    def of(cls, found: SurveyPass, returned: Any, kept: Iterable[Tensor]) -> Survey:
        """Read the facts from the graphs of ``found``, of the model's output and of the tensors that the model keeps.

        Raises:
            ErrorPlacementError: The model returns a loss that it has computed from the errors itself.
        """
        nodes = {tap.grad_fn: place for tap, place in zip(found.taps, found.places, strict=True)}
        below = {
            key: frozenset(nodes[node] for node in graph_nodes(tensor) if node in nodes)
            for key, tensor in found.errors.items()
        }
        used = frozenset().union(*below.values())
        exits = found.exits
        stops: dict[Any, str | None] = {node: place for node, place in nodes.items() if place in used} | exits
        marks = {id(mark) for mark in found.marks.values()}
        sides = [tensor for _, tensor in tensors_in(returned) if tensor.requires_grad and id(tensor) not in marks]
        _require_no_loss(sides, found.errors, stops)
        kept = list(kept)
        soft = frozenset(
            place for term in (*sides, *kept) for node in nodes_below(term, stops) if (place := stops[node])
        )
        inner = Reach.of(*found.errors.values()).inner
        return cls(
            places=frozenset(found.places),
            below=below,
            soft=soft,
            sides=any(has_nodes_in(tensor, inner, exits) for tensor in (*sides, *kept)),
            returned=frozenset(path for path, _ in tensors_in(returned)),
            graphless_terms=frozenset(path for path, term in tensors_in(returned) if found.is_without_graph(term)),
            finals={key: final for key, tensor in found.errors.items() if (final := FinalActivation.of(tensor))},
            flat=frozenset().union(*(_flat(tensor, nodes) for tensor in found.errors.values())),
            graphless=frozenset(found.graphless),
            outputs={key: tensor.detach() for key, tensor in found.errors.items()},
            channels={place: channel_axis(tensor) for place, tensor in found.tensors()},
        )


NO_SURVEY = Survey(frozenset(), {})
"""The survey of a pass that was not looked at."""


def _flat(error: Tensor, taps: Mapping[Any, str]) -> set[str]:
    """Return the calls of taps with no layer (no parameter of two dimensions or more) between them and ``error``."""
    found: set[str] = set()
    for node in graph_nodes(error, stops=taps):
        if node in taps:
            found.add(taps[node])
        elif hasattr(node, "variable") and node.variable.dim() > 1:
            return set()
    return found


def _require_no_loss(sides: Sequence[Tensor], errors: Mapping[str, Tensor], stops: Mapping[Any, Any]) -> None:
    """Raise ErrorPlacementError if one of ``sides`` is a single number computed from an error before its mark."""
    raw = {tensor.grad_fn: key for key, tensor in errors.items() if tensor.grad_fn is not None}
    for side in sides:
        passed = next(nodes_below(side, {**stops, **raw}), None) if not side.dim() else None
        if passed in raw:
            raise ErrorPlacementError(
                "the model returns a loss, a single number that it has computed itself from "
                f"{raw[passed] or 'its output'!r}: its error would not pass the model's output. Name the module that "
                "makes the output: error_at='lm_head' or error_at='head', for example."
            )
