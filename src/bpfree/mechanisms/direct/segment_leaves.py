"""The leaves that the segments of a pass end in, for passes that store no graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bpfree.errors import StreamingError
from bpfree.mechanisms.direct.alternation import Phase
from bpfree.plan import Plan
from bpfree.segments import Reach, first_overlap


@dataclass(frozen=True)
class SegmentLeaves:
    """The leaves of the segments of one kind of forward pass.

    Attributes:
        ends: The leaves of every segment; the segment of the output is last.
        shared: Leaves of several segments, or of one segment and of layers above the error. Their gradients are added
            up before they are accumulated, so that hooks and DDP see each gradient once.
        apart: For every segment, the numbers of its leaves in the list of outside arguments followed by ``shared``.
    """

    ends: Sequence[Sequence[Tensor]]
    shared: Sequence[Tensor]
    apart: Sequence[Sequence[int]]

    @classmethod
    def of(
        cls, names: Sequence[str], reaches: Sequence[Reach], outside: Sequence[Tensor], model: nn.Module
    ) -> SegmentLeaves:
        """Sort the leaves.

        Raises:
            StreamingError: A path leads around a cut.
        """
        _check_cuts([*names, "the output"], reaches)
        counts: dict[Tensor, int] = {}
        for leaf in (leaf for reach in reaches for leaf in reach.leaves):
            counts[leaf] = counts.get(leaf, 0) + 1
        tied = _tied(model)
        shared = [leaf for leaf, count in counts.items() if (count > 1 or leaf in tied) and leaf not in set(outside)]
        places = {leaf: place for place, leaf in enumerate([*outside, *shared])}
        apart = [[places[leaf] for leaf in reach.leaves if leaf in places] for reach in reaches]
        # Without the stand-ins of the arguments: they hold a batch.
        ends = [[leaf for leaf in reach.leaves if leaf not in set(outside)] for reach in reaches]
        return cls(ends, shared, apart)


def kind_of_pass(plan: Plan, names: Sequence[str], outside: Sequence[int], phase: Phase) -> Any:
    """Return a key for passes with the same leaves: taps, cuts, arguments with a gradient, which parameters learn."""
    return tuple(names), phase, tuple(outside), plan.learning


def _check_cuts(names: Sequence[str], reaches: Sequence[Reach]) -> None:
    number = first_overlap(reach.inner for reach in reaches)
    if number is not None:
        raise StreamingError(
            f"a path leads around the cut below {names[number]!r} (a residual connection past the tap, for example): "
            "the graph of an earlier segment is needed there again. Put the taps where everything passes, such as on "
            "the blocks (taps=...), or train without streaming."
        )


def _tied(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters that several modules share: one of these modules may lie above the error."""
    seen: set[nn.Parameter] = set()
    tied: set[nn.Parameter] = set()
    for _, parameter in model.named_parameters(remove_duplicate=False):
        (tied if parameter in seen else seen).add(parameter)
    return tied
