"""Direct feedback that learns from errors and activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.errors import TapOutputError
from bpfree.mechanisms.delivery import Layout, Pending
from bpfree.mechanisms.learned import LearnedMechanism, LearnedRule, in_own_precision
from bpfree.plan import Plan


class ErrorLearnedMechanism(LearnedMechanism):
    """A learned mechanism whose evidence is e^T h_l: from outputs that were kept, or as they pass behind the error."""

    def __init__(self, rule: LearnedRule, plan: Plan) -> None:
        super().__init__(rule, plan)
        # Of the outputs when they were given; None where a compiled graph lets nothing be overwritten.
        self._versions: list[int | None] = []

    def _begin(self, call: Any) -> None:
        super()._begin(call)
        self._versions = []

    def _cut(self, name: str, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        handed_on = super()._cut(name, module, args, output)
        if self._learning and handed_on is not None:
            self._versions.append(None if torch.compiler.is_compiling() else output._version)
        return handed_on

    def _begun(self, layout: Layout, outputs: Sequence[Tensor]) -> Pending:
        pending = super()._begun(layout, outputs)
        pending.learning = self._learning
        if self._learning:
            # A tap that ends the model has been taken back.
            pending.outputs = [(h.detach(), version) for h, version in zip(outputs, self._versions, strict=False)]
        return pending

    def passed(self, pending: Pending, number: int, output: Tensor, error: Tensor) -> None:
        """Take the evidence of one tap."""
        if pending.learning and len(error):
            site = pending.sites[number]
            (B,) = self.matrices([site])
            rows = self.rule.feedback.form(site).reduce(output.detach().reshape(len(error), -1))
            with in_own_precision(error):
                pending.parts.append(error.to(B).T @ rows.to(B))

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
