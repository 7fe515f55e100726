"""The settings of a run: the rule and its optimizer, the model, and everything else that changes its numbers.

``checks`` refuses what does not fit together, ``model`` has the model's, and a run is known by its ``identity``.
``signatures`` and ``argument_errors`` say what a class can be given, and ``trust`` whether code that a file names may
run. The classes stay in this file: results know them by this place.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias

import torch

import bpfree
from bpfree.errors import nearest
from bpfree.lab.data.augmentation import Augmentation
from bpfree.lab.disk.files import file_name
from bpfree.lab.errors import SettingsError
from bpfree.lab.process.environment import device
from bpfree.lab.settings.checks import check_alternate, check_optimizer, check_step
from bpfree.lab.settings.identity import identity, own_codes, versions
from bpfree.lab.settings.length import Length
from bpfree.lab.settings.plain_values import default, import_path, plain, rule_options
from bpfree.mechanisms.direct.alternation import AlternateOrder

Optimizer: TypeAlias = Literal["Adam", "AdamW", "RAdam", "SGD"]
Schedule: TypeAlias = Literal[
    "constant", "cosine", "exponential", "multistep", "noam", "plateau", "validation-plateau"
]  # fmt: skip
Precision: TypeAlias = Literal["float32", "bf16"]
Times: TypeAlias = Literal["every", "last", "never"]
"""After which evaluations something is measured."""
Restored: TypeAlias = Literal["best", "best-if-stopped"]
"""Whose weights a run with early stopping ends with."""


@dataclass(frozen=True, kw_only=True)
class RuleSettings:
    """A learning rule and how its gradients are used.

    Args:
        rule: The learning rule.
        optimizer: The optimizer, which turns gradients into steps.
        lr: The learning rate.
        weight_decay: The optimizer's weight decay.
        decayed: Names or patterns of the model's modules whose weights decay, with their Kolen-Pollack B; None for all.
        momentum: SGD's momentum; the other optimizers do not use it.
        beta2: Of Adam, AdamW and RAdam: how much of the mean square of the gradients is kept in a step.
        eps: Of the same: what is added to the root of that mean square.
        schedule: The course of the learning rate, see :mod:`bpfree.lab.tasks.optimization`. It stays (constant), falls
            along half a cosine to 0 at the last step (cosine), to 95 % after every epoch (exponential), to a tenth
            after 60 % and again after 90 % of the steps (multistep), or to a tenth where the training loss has not
            fallen for more than 5 epochs (plateau). Or it rises in a straight line to ``lr`` at step ``warmup`` and
            then falls with the root of the step (noam); or it falls to a fifth where the loss of the evaluation has not
            fallen for more than one evaluation (validation-plateau), which may not be on the test set.
        warmup: The steps of noam in which the learning rate rises.
        window: Layers learn from the signal ``window`` - 1 taps further up, carried down to them by ordinary
            backpropagation, see :func:`bpfree.attach`. More than 1 for direct rules only.
        alternate: Each step cuts one tap in so many, and the next step cuts others, see :func:`bpfree.attach`. More
            than 1 for direct rules only, and not beside a window.
        alternate_order: The order of these steps.
        within: The layerwise rule that carries signals down inside segments and windows in place of backpropagation.
    """

    rule: bpfree.Rule
    optimizer: Optimizer = "Adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    decayed: list[str] | None = None
    momentum: float = 0.0
    beta2: float = 0.999
    eps: float = 1e-8
    schedule: Schedule = "cosine"
    warmup: int = 0
    window: int = 1
    alternate: int = 1
    alternate_order: AlternateOrder = "cyclic"
    within: bpfree.LayerwiseRule | None = None

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "momentum", "eps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingsError(f"{name} {getattr(self, name)} must be 0 or a positive number.")
        check_optimizer(self)
        if self.window < 1:
            raise SettingsError(f"--window {self.window} must be at least 1.")
        if self.window > 1 and not isinstance(self.rule, bpfree.DirectRule):
            raise SettingsError(f"window {self.window}: windows are for direct rules such as DFA, not for {self.rule}.")
        check_alternate(self)

    def changed(self, *names: str) -> dict[str, Any]:
        """Return the settings among these names that are not at their defaults."""
        usual = {entry.name: default(entry) for entry in fields(self)}
        return {name: getattr(self, name) for name in names if getattr(self, name) != usual[name]}

    def describe(self) -> dict[str, Any]:
        """Return the settings as a report shows them; of the rule's options those that are not at their defaults."""
        shown: dict[str, Any] = {"rule": type(self.rule).__name__, "options": rule_options(self.rule)}
        shown |= {"optimizer": self.optimizer, "lr": self.lr, "schedule": self.schedule}
        shown |= self.changed("weight_decay", "decayed", "momentum", "beta2", "eps", "warmup")
        shown |= self.changed("window", "alternate", "alternate_order")
        if self.within is not None:
            shown["within"] = str(self.within)
        return shown


@dataclass(frozen=True, kw_only=True)
class RuleOverrides:
    """The differences from a label's preset; None leaves the preset's value.

    Args:
        rule: The learning rule: a class of bpfree, or one of your own by import path.
        optimizer: The optimizer, which turns gradients into steps.
        lr: The learning rate.
        weight_decay: The optimizer's weight decay.
        decayed: Names or patterns of the model's modules whose weights decay, with their Kolen-Pollack B; by default
            all.
        momentum: SGD's momentum.
        beta2: Of Adam, AdamW and RAdam: how much of the mean square of the gradients is kept in a step; by default
            .999.
        eps: Of the same: what is added to the root of that mean square; by default 1e-8.
        schedule: The learning rate's schedule: constant, cosine, exponential, multistep, noam, plateau or
            validation-plateau.
        warmup: The steps in which the learning rate rises to lr under noam.
        window: For direct rules: layers learn from the signal window - 1 taps further up.
        alternate: For direct rules: each step cuts one tap in so many, and the next step cuts others.
        alternate_order: The order of these steps: cyclic, or random.
        within: For direct rules: the layerwise rule that carries signals down inside segments and windows.
    """

    rule: bpfree.Rule | None = None
    optimizer: Optimizer | None = None
    lr: float | None = None
    weight_decay: float | None = None
    decayed: list[str] | None = None
    momentum: float | None = None
    beta2: float | None = None
    eps: float | None = None
    schedule: Schedule | None = None
    warmup: int | None = None
    window: int | None = None
    alternate: int | None = None
    alternate_order: AlternateOrder | None = None
    within: bpfree.LayerwiseRule | None = None

    def given(self) -> dict[str, Any]:
        """Return the values that are not None, by name."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


PRESETS: dict[str, RuleSettings] = {
    "BP": RuleSettings(rule=bpfree.BP(), lr=5e-4),
    "Shallow": RuleSettings(rule=bpfree.Shallow(), lr=3e-3),
    "FA": RuleSettings(rule=bpfree.FA(), lr=5e-4),
    "uSF": RuleSettings(rule=bpfree.SignSymmetry("uniform"), lr=5e-4),
    "frSF": RuleSettings(rule=bpfree.SignSymmetry("fixed"), lr=5e-4),
    "brSF": RuleSettings(rule=bpfree.SignSymmetry("batch"), lr=5e-4),
    "DFA": RuleSettings(rule=bpfree.DFA(), lr=5e-4),
    "sDFA": RuleSettings(rule=bpfree.DFA(error="sign"), lr=1e-3),
    "ternary DFA": RuleSettings(rule=bpfree.DFA(error="ternary"), lr=3e-3),
    "DRTP": RuleSettings(rule=bpfree.DRTP(), lr=3e-3),
    "GrAPE": RuleSettings(rule=bpfree.GrAPE(), lr=3e-3),
    "FDFA": RuleSettings(rule=bpfree.FDFA(), lr=3e-3),
    "LMS": RuleSettings(rule=bpfree.LMS(), lr=3e-3),
    "DKP": RuleSettings(rule=bpfree.DKP(), lr=3e-3),
    # The difference of W and B shrinks by the decay alone, and exactly so where it is not part of the gradient.
    "KP": RuleSettings(rule=bpfree.KolenPollack(), optimizer="AdamW", lr=3e-3, weight_decay=0.1),
    "WM": RuleSettings(rule=bpfree.WeightMirror(), lr=3e-3),
    "PEPITA": RuleSettings(rule=bpfree.PEPITA(), lr=3e-3),
    "FG-A": RuleSettings(rule=bpfree.ForwardGradient("activations"), lr=3e-4),
    "FG-W": RuleSettings(rule=bpfree.ForwardGradient("weights"), lr=3e-3),
}
"""Label -> settings to begin with: learning rates that did well on held-out training images of digits and MNIST."""


def rule_settings(
    label: str,
    overrides: Mapping[str, RuleOverrides] | None = None,
    lr: float | None = None,
    window: int = 1,
    schedule: Schedule | None = None,
    alternate: int = 1,
) -> RuleSettings:
    """Return the complete settings of one label.

    Its preset (or, for another rule of bpfree, that rule as it comes), changed by ``lr``, ``window``, ``alternate``
    and ``schedule``, changed by ``overrides``.

    Args:
        label: A preset's name, a rule's class name, or a new label whose override names a rule.
        overrides: Label -> what differs.
        lr: A learning rate for every label that has none of its own in ``overrides``.
        window: The same of windows; for direct rules alone, and not for the frozen control, which would begin to learn.
        schedule: The same for the learning rate's schedule.
        alternate: The same of alternating cuts, for the rules that windows are for.

    Raises:
        SettingsError: An unknown label, or a window or alternating cuts that the rule cannot have.
    """
    given = (overrides or {}).get(label, RuleOverrides()).given()
    if label in PRESETS:
        start = PRESETS[label]
    elif "rule" in given:
        start = RuleSettings(rule=given["rule"])
    elif label in bpfree.RULES:
        start = RuleSettings(rule=bpfree.RULES[label]())
    else:
        raise SettingsError(
            f"rule {label!r} is not known. {nearest(label, dict.fromkeys([*PRESETS, *bpfree.RULES]))} "
            f"For a rule of your own, also give --settings.{label}.rule your_module.YourRule."
        )
    general: dict[str, Any] = {name: value for name, value in (("lr", lr), ("schedule", schedule)) if value is not None}
    rule = given.get("rule", start.rule)
    if isinstance(rule, bpfree.DirectRule) and not isinstance(rule, bpfree.Shallow):
        general |= {"window": window, "alternate": alternate}
    return replace(start, **(general | given))


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Everything that one run's numbers depend on, besides the data.

    Args:
        label: The run's name in tables.
        seed: Determines the initial weights, the order of the data and the feedback.
        rule: The rule and its optimizer.
        model: The model, as :meth:`bpfree.lab.settings.model.ModelSettings.describe` gives it.
        task: The task, one of :data:`bpfree.lab.tasks.TASKS`.
        taps: Names or patterns of the taps; None for every non-linearity.
        error_at: The module at whose output the error is taken, or several of them; None for the model's.
        epochs: The parts of a run; after each part the model is evaluated, and the run can be continued from there. A
            part is a pass over the training data.
        steps: Steps of the whole run, in ``epochs`` equal parts that do not depend on passes over the data.
        batch_size: The number of samples in a step.
        clip: The largest norm of all gradients together; larger ones are scaled down to it. None leaves them.
        accumulate: The equal parts into which a step's batch is cut: they run one after the other, for less memory,
            and their gradients are averaged.
        precision: float32, or bf16: matrix products and convolutions in bfloat16, weights in float32 (autocast).
        threads: torch's threads; sums differ in their last bits with another number.
        details: Also keep the first layer's filters and a t-SNE of the last hidden layer, and text that a language
            model writes after each evaluation.
        augmentation: The random changes of training images.
        alignment: The evaluations after which alignment is measured.
        visualize: The convolution whose filters are shown by the images that excite them most; None for none.
        patience: The run ends where so many evaluations in a row have brought no better number on validation data; None
            for never.
        processes: The number of processes among which each batch is dealt out.
        restored: With patience, the weights that a run ends with: those of the best evaluation, or those only if the
            run has ended early and else the last ones.
    """

    label: str
    seed: int
    rule: RuleSettings
    model: dict[str, Any] = field(default_factory=dict)
    task: str = "classification"
    taps: list[str] | None = None
    error_at: str | list[str] | None = None
    epochs: int
    steps: int | None = None
    batch_size: int
    clip: float | None = None
    accumulate: int = 1
    precision: Precision = "float32"
    threads: int
    details: bool = False
    augmentation: Augmentation = field(default_factory=Augmentation)
    alignment: Times = "every"
    visualize: str | None = None
    patience: int | None = None
    restored: Restored = "best"
    processes: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "threads"):
            if getattr(self, name) < 1:
                raise SettingsError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 1.")
        check_step(self)
        if self.steps is not None and (self.steps < 1 or self.steps % self.epochs):
            raise SettingsError(
                f"--steps {self.steps} are not {self.epochs} equal parts, one before each evaluation. Name a multiple "
                "of them, or another number of --evaluations."
            )
        if self.steps is not None and self.rule.schedule in ("exponential", "plateau"):
            raise SettingsError(
                f"--schedule {self.rule.schedule} counts passes over the data, and this run is counted in steps: how "
                "often it is evaluated would change what it learns. Take constant, cosine, multistep or noam, or count "
                "in --epochs."
            )
        # numpy, which Lightning seeds as well, takes no others.
        if not 0 <= self.seed < 2**32:
            raise SettingsError(f"seed {self.seed} must lie between 0 and {2**32 - 1}.")

    def describe_step(self) -> dict[str, Any]:
        """Return how steps are taken and end, as records and reports show it: what is not at its default."""
        usual = {"clip": None, "accumulate": 1, "precision": "float32", "patience": None, "restored": "best"}
        return {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}

    @property
    def length(self) -> Length:
        """The length of the run."""
        return Length(self.epochs) if self.steps is None else Length(self.epochs, self.steps // self.epochs)

    def name(self, data: Mapping[str, Any]) -> str:
        """Return a file name for this run on this data: label, seed, and a hash of all that changes its numbers."""
        facts = {
            "settings": identity(plain(self)),
            "rule": import_path(type(self.rule.rule)),
            "code": own_codes(self.rule.rule, self.rule.within, self.model),
            "data": plain(data),
            "versions": [bpfree.__version__, str(torch.__version__), *versions(self.model)],
        }
        if device() != "cpu":
            facts["device"] = device()
        if self.rule.within is not None:
            facts["within"] = import_path(type(self.rule.within))
        text = json.dumps(facts, sort_keys=True)
        return f"{file_name(self.label)}-seed{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
