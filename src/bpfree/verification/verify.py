"""verify(): try on a model, with given inputs, the laws that hold for every rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bpfree.attachment import Attachment
from bpfree.errors import StreamingError, VerificationError
from bpfree.mechanisms.direct.inspection import Inspection
from bpfree.mechanisms.direct.mechanism import DirectMechanism
from bpfree.mechanisms.forward_only.mechanism import ForwardOnlyMechanism
from bpfree.mechanisms.learned.observing import ObservingMechanism
from bpfree.tabulate import tabulate
from bpfree.verification.finding import Finding
from bpfree.verification.layers import check_layers
from bpfree.verification.second_run import check_second_run


@dataclass(frozen=True)
class Verification:
    """The result of :func:`verify`; ``print`` it for a table.

    Attributes:
        checks: The checks that were made.
        findings: The laws that do not hold.
    """

    checks: Sequence[str]
    findings: Sequence[Finding]

    @property
    def is_right(self) -> bool:
        """True if the model learns what the rule says, as far as the checks show."""
        return not any(finding.wrong for finding in self.findings)

    def __str__(self) -> str:
        found = {check: [finding for finding in self.findings if finding.check == check] for check in self.checks}
        rows = [[check, "holds" if not findings else f"{len(findings)} found"] for check, findings in found.items()]
        return "\n".join([*tabulate(["check", "result"], rows), *map(str, self.findings)])


def verify(attachment: Attachment, *args: Any, **kwargs: Any) -> Verification:
    """Try the laws of every rule on one call of the model, ``model(*args, **kwargs)``, however much memory it takes.

    Weights, buffers, attributes, feedback, gradients and random state are left as they are. A law is tried where the
    rule has use for it:

    - ``"taught"``: with backpropagation's signals at its taps, every parameter gets backpropagation's gradient.
    - ``"rows"``: no sample is in another sample's signal.
    - ``"part of the batch"``: the model computes some samples as it computes them in the whole batch.
    - ``"second run"``: the model gives the same numbers twice, and leaves what it keeps. Where a way of learning runs
      it once, this is tried only to explain another finding.
    - ``"adjoint"``: tangents of the estimating pass and gradients belong together, <u, J v> = <J^T u, v>.
    - ``"layers"``: a layer that a layerwise rule serves passes backpropagation's gradient where B is W.

    Args:
        attachment: The rule on its model.
        args: The model's arguments.
        kwargs: Its keyword arguments.
    """
    plan, mechanism = attachment.mechanism.plan, attachment.mechanism
    checks, findings = [], []
    if isinstance(mechanism, DirectMechanism):
        checks += ["taught", "rows"]
        if isinstance(mechanism, ObservingMechanism):
            checks += ["adjoint"] if mechanism.takes_all_rows else ["adjoint", "part of the batch"]
        try:
            findings += Inspection(mechanism, (args, kwargs), thorough=True).findings
        except (VerificationError, StreamingError) as error:
            findings.append(Finding("taught", plan.error_name or "(model)", str(error), ""))
    runs_again = plan.streaming or isinstance(mechanism, ObservingMechanism | ForwardOnlyMechanism)
    if runs_again or findings:
        checks.append("second run")
        if not any(finding.check == "second run" for finding in findings):
            with attachment.paused():
                findings += check_second_run(plan, (args, kwargs))
    layers = check_layers(attachment, args, kwargs)
    if layers or not isinstance(mechanism, DirectMechanism) or attachment.within is not None:
        checks.append("layers")
        findings += layers
    return Verification(checks, findings)
