"""Attach a rule for a callback of a training loop, detach it, and attach it again with the state that it had."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bpfree.attach import attach
from bpfree.attachment import Attachment
from bpfree.checks import check_rule
from bpfree.errors import MissingPackageError, OptionError, nearest
from bpfree.mechanisms.base import Rule


class RuleKeeper:
    """Attaches a rule to the model that a training loop brings, and keeps its state while it is off.

    Args:
        rule: The rule.
        options: Those of :func:`bpfree.attach`.

    Attributes:
        attachment: The attachment, the last one while the rule is off; None before the first.
        is_on: True if the rule is on its model.

    Raises:
        OptionError: ``rule`` is no rule, or :func:`bpfree.attach` has no option of such a name.
    """

    def __init__(self, rule: Rule, options: Mapping[str, Any]) -> None:
        check_rule(rule)
        known = list(inspect.signature(attach).parameters)[2:]
        for name in options:
            if name not in known:
                raise OptionError(f"bpfree.attach has no option {name!r}. {nearest(name, known)}")
        self.attachment: Attachment | None = None
        self.is_on = False
        self._rule, self._options = rule, dict(options)
        self._loaded: dict[str, Tensor] | None = None

    def attach(self, model: nn.Module) -> Attachment:
        """Put the rule on ``model``: anew, or with the state that it had there or that was loaded."""
        before = self.attachment
        if before is not None and self.is_on and before.model is model:
            return before
        self.detach()
        attachment = attach(model, self._rule, **self._options)
        state = self._loaded
        if state is None and before is not None and before.model is model:
            state = before.state_dict()
        try:
            if state is not None:
                attachment.load_state_dict(state)
        except BaseException:
            attachment.detach()
            raise
        self.attachment, self.is_on, self._loaded = attachment, True, None
        return attachment

    def detach(self) -> None:
        """Take the rule off its model, if it is on one."""
        if self.attachment is not None and self.is_on:
            self.attachment.detach()
        self.is_on = False

    def state_dict(self) -> dict[str, Tensor]:
        """The rule's state; empty before the first model."""
        if self._loaded is not None:
            return self._loaded
        return {} if self.attachment is None else dict(self.attachment.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take a saved state, now or when the rule is put on a model.

        Raises:
            StateError: It is that of another rule or model.
        """
        if self.attachment is not None and self.is_on:
            self.attachment.load_state_dict(dict(state))
        else:
            self._loaded = dict(state)


def check_alignment_every(steps: int) -> None:
    """Raise OptionError for ``alignment_every=`` of what is no number of steps."""
    if not isinstance(steps, int) or steps < 0:  # callers are not type-checked
        raise OptionError(f"alignment_every={steps!r}: a whole number of optimizer steps, 0 for never.")


def missing_package(error: ImportError, package: str) -> ImportError:
    """Make the error for an import that failed: it names the extra, or is ``error`` where ``package`` is installed."""
    if not isinstance(error, ModuleNotFoundError) or (error.name or "").partition(".")[0] != package:
        return error
    return MissingPackageError(f"{package} is not installed: pip install 'bpfree[{package}]'.", name=package)
