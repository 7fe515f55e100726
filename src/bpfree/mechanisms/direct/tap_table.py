"""The table of an attachment: a row for each tap, with the layers that learn from its signal."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bpfree.containers import tensors_in
from bpfree.mechanisms.direct.forward_pass import TrainingPass
from bpfree.mechanisms.direct.pass_state import PassState
from bpfree.segments import Segments, graph_nodes
from bpfree.tabulate import fold_names

if TYPE_CHECKING:
    from bpfree.mechanisms.direct.mechanism import DirectMechanism


class TapTable:
    """Notes which layers learn from which signal, once for each kind of pass.

    Args:
        mechanism: The mechanism that the table describes.
    """

    def __init__(self, mechanism: DirectMechanism) -> None:
        self._mechanism = mechanism
        self._segments: dict[Any, Segments] = {}
        self._last: Segments | None = None

    def forget(self) -> None:
        """Forget what passes have shown: the model's modules have changed."""
        self._segments.clear()
        self._last = None

    def note(self, call: PassState, tapped: TrainingPass, returned: Any) -> None:
        """Note the segments of a pass that has ended, and has returned this."""
        if torch.compiler.is_compiling():
            return
        plan = self._mechanism.plan
        kind = (tuple(tapped.places), tapped.phase, tuple(call.errors), plan.learning, call.signals is None)
        known = self._segments.get(kind)
        if known is None:
            ends = {name: tapped.ends(output) for name, output in call.errors.items()}
            below = next(iter(ends.values()))[:-1]
            last = {name: found[-1] for name, found in ends.items()}
            known = Segments.of(plan, tapped.places, below, last, self._past_errors(call, returned))
            passed = {place: "(not cut in this step)" for i, place in enumerate(tapped.places) if not tapped.is_cut(i)}
            known = self._segments[kind] = replace(known, learners={**known.learners, **passed})
        self._last = known

    def _past_errors(self, call: PassState, returned: Any) -> list[Tensor]:
        """Return the leaves that a loss of what the model returns, or keeps on itself, reaches past the errors."""
        kept = (tensor for holder in self._mechanism.plan.state.holders for _, tensor in holder.tensors)
        roots = [*(tensor for _, tensor in tensors_in(returned)), *kept]
        return [node.variable for node in graph_nodes(*roots, stops=call.exit_nodes) if hasattr(node, "variable")]

    def rows(self) -> tuple[list[str], list[list[str]], list[str]]:
        """Return the header, a row for each tap (shape, feedback, the layers that learn from it), and remarks."""
        mechanism, segments = self._mechanism, self._last
        if segments is None:
            names = ", ".join(fold_names(mechanism.plan.taps))
            later = "Shapes are known after the first forward pass (or with example_inputs=)."
            return [], [], [f"taps: {names}", later]
        rows = [self._row(place, layers) for place, layers in segments.learners.items()]
        rows += [[name or "(output)", "", "exact gradient", layers] for name, layers in segments.exact.items()]
        cuts = list(mechanism.cuts)
        no_signal = [f"No signal passes {', '.join(fold_names(cuts))}: cut there."] if cuts else []
        alternating = [] if mechanism.alternation is None else [mechanism.alternation.describe()]
        options = [*alternating, *mechanism.passes.describe(), *mechanism.first_look.describe()]
        remarks = [*no_signal, *options, *segments.remarks]
        return ["tap", "shape", "feedback", "learns from it"], rows, remarks

    def _row(self, place: str, layers: str) -> list[str]:
        """Return one tap's row; with several errors it names the feedback of every error above the tap."""
        senders = self._mechanism.by_error.values()
        known = [(sender, site) for sender in senders for site in sender.sites if site.name == place]
        shape = "x".join(map(str, ("N", *known[0][1].features))) if known else ""
        return [place, shape, " + ".join(sender.feedback.describe(site) for sender, site in known), layers]
