"""Tasks: data of some kind, a loss, and the metric that rules are compared by."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

_INITIALS = ("auc", "psnr", "ssim")


@dataclass(frozen=True)
class Metric:
    """The number that rules are compared by.

    Attributes:
        name: Its name, and its key in records: ``eval_<name>`` of an evaluation, ``<name>`` of a run, ``<name>_mean``
            and ``<name>_std`` in a summary.
        unit: The unit that stands behind a value.
        better: Which values are the better ones.
        about: Its definition, for the readers of a report.
        linear: Maps it to the scale on which recovery is measured.
        recovery: The definition of recovery on that scale.
        digits: Digits behind the point of a value.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"]
    about: str
    linear: Callable[[float], float] = float
    recovery: str = "(rule - Shallow) / (BP - Shallow)"
    digits: int = 2

    @property
    def noun(self) -> str:
        """Its name in a sentence."""
        return self.name.upper() if self.name in _INITIALS else self.name.replace("_", " ")

    @property
    def title(self) -> str:
        """Its name at the beginning of a line."""
        return self.noun[:1].upper() + self.noun[1:]

    def show(self, value: float | None) -> str:
        """Return a value with its unit; None is what a file has in place of infinity."""
        return "not finite" if value is None else f"{value:.{self.digits}f}{self.unit}"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: its learner, its metric, and the defaults of the options.

    Attributes:
        name: The task's name.
        learner: Import path of its :class:`bpfree.lab.tasks.learner.Learner`.
        metric: The number that rules are compared by.
        samples: The noun for the samples of the evaluation set.
        model: The model that is trained.
        rules: The rules that are compared.
        batch_size: The number of samples in a step.
        epochs: Passes over the training data.
        steps: Steps of a run, in place of epochs.
        evaluations: The number of evaluations of a run that is counted in steps.
        lr: The learning rate of all rules; None for that of each rule's preset.
        schedule: The schedule of the learning rate; None for that of each rule's preset.
        evaluation_batch: Samples evaluated at once, where there are several batches.
        alignment_samples: The number of first evaluation samples that alignment is measured on, likewise.
        beside: Numbers of a run's record that are shown beside the metric.
        chosen_by: The number of an evaluation, measured on validation data, by which early stopping chooses weights;
            None where it cannot be.
        measures: Numbers of a run's record that only this task has, which a table may show.
    """

    name: str
    learner: str
    metric: Metric
    samples: str
    model: str
    rules: tuple[str, ...]
    batch_size: int
    epochs: int | None = None
    steps: int | None = None
    evaluations: int = 8
    lr: float | None = None
    schedule: Literal["constant", "cosine"] | None = None
    evaluation_batch: int = 1
    alignment_samples: int = 1
    beside: tuple[Metric, ...] = ()
    chosen_by: str | None = None
    measures: tuple[str, ...] = ()

    def learner_class(self) -> Any:
        """Return the class that :attr:`learner` names."""
        # By name, so that options and reports know of tasks without loading what trains them.
        module, _, name = self.learner.rpartition(".")
        return getattr(importlib.import_module(module), name)
