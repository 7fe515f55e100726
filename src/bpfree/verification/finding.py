"""The findings of the checks of an attachment."""

from __future__ import annotations

from dataclasses import dataclass

NOT_LEARNED = "No weight has learned. attach(..., verify=False) goes on."
"""The end of the message of an error that a check of an attachment raises."""


@dataclass(frozen=True)
class Finding:
    """One law that does not hold for this model under this rule.

    Attributes:
        check: The check that failed: ``"outputs"``, ``"second run"``, ``"adjoint"``, ``"layers"``, ``"taught"``,
            ``"rows"`` or ``"part of the batch"``.
        where: The name of the tap, layer, parameter or attribute concerned.
        found: The measured value, and its bound.
        remedy: The advice to the user.
        wrong: True if the model would learn something else than the rule says (an error is raised); False if it is only
            something that the user should know (a warning is given).
    """

    check: str
    where: str
    found: str
    remedy: str
    wrong: bool = True

    def __str__(self) -> str:
        return f"{self.check} at {self.where!r}: {self.found} {self.remedy}"
