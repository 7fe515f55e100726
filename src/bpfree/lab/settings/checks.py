"""Settings of optimizers and steps that do not fit together: each is refused by name."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import bpfree
from bpfree.lab.errors import SettingsError

if TYPE_CHECKING:
    from bpfree.lab.settings import RuleSettings, RunSettings


def check_optimizer(rule: RuleSettings) -> None:
    """Refuse what an optimizer or a schedule does not have."""
    if not 0 <= rule.beta2 < 1:
        raise SettingsError(f"beta2 {rule.beta2} must be at least 0 and less than 1.")
    if rule.optimizer == "SGD" and rule.changed("beta2", "eps"):
        raise SettingsError("beta2 and eps: SGD has none. Leave them out, or take Adam, AdamW or RAdam.")
    if rule.schedule == "noam" and rule.warmup < 1:
        raise SettingsError(
            "schedule noam: say in how many steps the learning rate rises, for example warmup 4000 "
            "(--settings.LABEL.warmup 4000); it is highest, lr, after these."
        )
    if rule.schedule != "noam" and rule.warmup:
        raise SettingsError(f"warmup {rule.warmup}: schedule {rule.schedule} has none. Leave it out, or take noam.")


def check_alternate(rule: RuleSettings) -> None:
    """Refuse alternating cuts that mean nothing, or that the rule or a window leaves no room for."""
    if rule.alternate < 1:
        raise SettingsError(f"alternate {rule.alternate} must be at least 1.")
    if rule.alternate > 1 and not isinstance(rule.rule, bpfree.DirectRule):
        raise SettingsError(f"alternate {rule.alternate} is for direct rules such as DFA, not for {rule.rule}.")
    if rule.alternate > 1 and rule.window > 1:
        raise SettingsError(f"alternate {rule.alternate} and window {rule.window}: leave one of them out.")


def check_measured_on(rule: RuleSettings, measured_on: str) -> None:
    """Refuse to choose learning rates by a test set.

    Raises:
        SettingsError: They would be.
    """
    if rule.schedule == "validation-plateau" and measured_on == "test":
        raise SettingsError(
            "schedule validation-plateau lowers the learning rate by the loss of the evaluation, and this run is "
            "evaluated on the test set, which must choose nothing. Evaluate on validation data (--validation N for "
            "images, --text.measured_on validation for text), or take schedule plateau, by the training loss."
        )


def check_step(run: RunSettings) -> None:
    """Refuse ways to take steps, or to end them, that do not fit."""
    if run.patience is not None and run.patience < 1:
        raise SettingsError(f"--patience {run.patience} must be at least 1 evaluation. Leave it out to stop never.")
    if run.restored != "best" and run.patience is None:
        raise SettingsError(f"--restored {run.restored}: this run does not stop early; also give --patience.")
    if run.clip is not None and not 0 < run.clip < math.inf:
        raise SettingsError(
            f"--clip {run.clip} must be a positive number, the largest norm of the gradients. Leave it out to "
            "clip nothing."
        )
    if run.batch_size % run.accumulate:
        raise SettingsError(
            f"--accumulate {run.accumulate}: a batch of {run.batch_size} cannot be cut into so many equal parts. "
            "Take a divisor of --batch-size."
        )
    if run.batch_size % run.processes:
        raise SettingsError(
            f"--batch-size {run.batch_size}: {run.processes} processes cannot share it in equal parts. Take a multiple."
        )
    if run.precision == "bf16" and isinstance(run.rule.rule, bpfree.PEPITA):
        raise SettingsError(
            "--precision bf16: PEPITA's signals are differences of nearly equal activations, of which bfloat16 "
            "leaves too little. Take float32."
        )
