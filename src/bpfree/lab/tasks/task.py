"""What a task is: data of some kind, a loss, and the number that rules are compared by."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """The number that rules are compared by.

    Attributes:
        name: Its name, and its key in records: ``eval_<name>`` of an evaluation, ``<name>`` of a run, ``<name>_mean``
            and ``<name>_std`` in a summary.
        unit: What stands behind a value.
        better: Which values are the better ones.
        about: What it is, for the readers of a report.
        linear: Maps it to the scale on which recovery is measured.
        recovery: How recovery is defined on that scale.
        digits: Digits behind the point of a value.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"]
    about: str
    linear: Callable[[float], float] = float
    recovery: str = "(rule - Shallow) / (BP - Shallow)"
    digits: int = 2

    def show(self, value: float | None) -> str:
        """A value with its unit; None is what a file has in place of infinity."""
        return "not finite" if value is None else f"{value:.{self.digits}f}{self.unit}"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained on what, and how, unless options say otherwise.

    Attributes:
        name: The task's name.
        learner: Import path of its :class:`bpfree.lab.tasks.learner.Learner`.
        metric: What rules are compared by.
        samples: What the evaluation set is counted in.
        model: The model that is trained.
        rules: The rules that are compared.
        batch_size: Samples a step.
        epochs: Passes over the training data.
        steps: Steps in place of them.
        evaluations: How many times a run that is counted in steps is evaluated.
        lr: The learning rate of all rules; None for that of each rule's preset.
        schedule: The course of the learning rate; None for that of each rule's preset.
        evaluation_batch: Samples evaluated at once, where there are several batches.
        alignment_samples: How many of the first evaluation samples alignment is measured on, likewise.
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
    measures: tuple[str, ...] = ()

    def learner_class(self) -> Any:
        """The class that :attr:`learner` names."""
        # By name, so that options and reports know of tasks without loading what trains them.
        module, _, name = self.learner.rpartition(".")
        return getattr(importlib.import_module(module), name)
