"""Direct feedback that learns from errors and activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from bpfree.errors import TapOutputError
from bpfree.mechanisms.direct.delivery import Layout, PassMemory
from bpfree.mechanisms.direct.forward_pass import TrainingPass
from bpfree.mechanisms.direct.pass_state import PassState
from bpfree.mechanisms.learned.mechanism import LearnedMechanism
from bpfree.mechanisms.learned.rule import LearnedRule
from bpfree.plan import Plan
from bpfree.precision import in_own_precision


@dataclass(frozen=True)
class ErrorLearnedRule(LearnedRule):
    r"""A learned rule whose evidence is made of errors and activations, those that the backward pass has anyway.

    .. math:: G_l = \sum_b e_b \otimes h_{b,l}

    e is the gradient of the batch's loss: behind a mean loss it is smaller, the larger the batch.
    """

    def mechanism(self, plan: Plan) -> LearnedMechanism:
        """Keep the activations at the taps for the error."""
        return ErrorLearnedMechanism(self, plan)


class ErrorLearnedMechanism(LearnedMechanism):
    """A learned mechanism whose evidence is e^T h_l, from outputs that were kept, or that a rerun makes."""

    def _remember(self, state: PassState, layout: Layout, outputs: Sequence[Tensor]) -> PassMemory:
        memory = super()._remember(state, layout, outputs)
        memory.learning = state.learning
        if state.learning and isinstance(state.tapped, TrainingPass):
            versions = dict(zip(state.tapped.places, state.tapped.versions, strict=True))
            pairs = zip(outputs, layout.sites, strict=True) if outputs else ()
            memory.outputs = [(h.detach(), versions[site.name]) for h, site in pairs]
        return memory

    def on_tap_output(self, memory: PassMemory, number: int, output: Tensor, error: Tensor) -> None:
        """Take the evidence of one tap."""
        if memory.learning and len(error):
            site = memory.sites[number]
            (B,) = self.matrices([site])
            rows = self.rule.feedback.form(site).reduce(site.rows_of(output.detach()))
            with in_own_precision(error):
                if memory.reduced is None:
                    memory.reduced = self.feedback.reduced(error)
                of_tap = memory.reduced if site.pairing is None else site.pairing.gather(memory.reduced)
                memory.parts.append(of_tap.to(B).T @ rows.to(B))

    def learn(self, memory: PassMemory, error: Tensor) -> None:
        """Gather the evidence, and let every matrix take its step."""
        outputs, memory.outputs = memory.outputs, ()
        for number, (output, version) in enumerate(outputs):
            if version is not None and output._version != version:
                raise TapOutputError(
                    f"the output of tap {memory.sites[number].name!r} was changed in place behind it, and "
                    f"{type(self.rule).__name__} learns from it as it was. Write the operation behind it without '_' "
                    "or inplace=True, or train with streaming=True."
                )
            self.on_tap_output(memory, number, output, error)
        parts, memory.parts, memory.reduced = memory.parts, [], None
        if parts:
            memory.evidence = self._gathered(memory.sites, parts)
        super().learn(memory, error)
