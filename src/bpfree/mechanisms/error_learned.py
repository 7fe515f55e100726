"""Direct feedback that learns from errors and activations."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bpfree.errors import TapOutputError
from bpfree.mechanisms.delivery import Layout, Pending
from bpfree.mechanisms.learned import LearnedMechanism, in_own_precision
from bpfree.mechanisms.pass_state import PassState
from bpfree.mechanisms.passage import Passage


class ErrorLearnedMechanism(LearnedMechanism):
    """A learned mechanism whose evidence is e^T h_l: from outputs that were kept, or as they pass behind the error."""

    def _begun(self, state: PassState, layout: Layout, outputs: Sequence[Tensor]) -> Pending:
        pending = super()._begun(state, layout, outputs)
        pending.learning = state.learning
        if state.learning and isinstance(state.run, Passage):
            versions = dict(zip(state.run.places, state.run.versions, strict=True))
            pairs = zip(outputs, layout.sites, strict=True) if outputs else ()
            pending.outputs = [(h.detach(), versions[site.name]) for h, site in pairs]
        return pending

    def passed(self, pending: Pending, number: int, output: Tensor, error: Tensor) -> None:
        """Take the evidence of one tap."""
        if pending.learning and len(error):
            site = pending.sites[number]
            (B,) = self.matrices([site])
            rows = self.rule.feedback.form(site).reduce(site.rows_of(output.detach()))
            of_tap = error if site.pairing is None else site.pairing.gather(error)
            with in_own_precision(error):
                pending.parts.append(of_tap.to(B).T @ rows.to(B))

    def learn(self, pending: Pending, error: Tensor) -> None:
        """Gather the evidence, and let every matrix take its step."""
        outputs, pending.outputs = pending.outputs, ()
        for number, (output, version) in enumerate(outputs):
            if version is not None and output._version != version:
                raise TapOutputError(
                    f"the output of tap {pending.sites[number].name!r} was changed in place behind it, and "
                    f"{type(self.rule).__name__} learns from it as it was. Write the operation behind it without '_' "
                    "or inplace=True, or train with streaming=True."
                )
            self.passed(pending, number, output, error)
        parts, pending.parts = pending.parts, []
        if parts:
            pending.evidence = self._gathered(pending.sites, parts)
        super().learn(pending, error)
