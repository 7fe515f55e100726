"""What is trained on what. A new task is a reader in ``lab/data``, a learner here, and an entry in ``TASKS``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bpfree.lab.tasks.task import Metric, Task

CLASSIFICATION = Task(
    name="classification",
    learner="bpfree.lab.tasks.vision.Classification",
    metric=Metric(name="accuracy", unit=" %", better="higher", about="the percentage of samples whose class is found"),
    samples="images",
    model="MLP",
    rules=("BP", "Shallow", "FA", "uSF", "DFA", "DRTP"),
    batch_size=128,
    epochs=5,
    evaluation_batch=1000,
    alignment_samples=512,
)
LANGUAGE = Task(
    name="language",
    learner="bpfree.lab.tasks.language.LanguageModel",
    metric=Metric(
        name="perplexity",
        unit="",
        better="lower",
        about="the exponential of the mean cross-entropy of the next token",
        linear=math.log,
        recovery="(Shallow - rule) / (Shallow - BP) of the logarithm of perplexity",
    ),
    samples="tokens",
    model="CausalTransformer",
    rules=("BP", "Shallow", "DFA"),
    batch_size=16,
    steps=800,
    # Chosen before any run, the same for every rule.
    lr=1e-3,
    schedule="constant",
    evaluation_batch=32,
    alignment_samples=16,
)

TASKS = {task.name: task for task in (CLASSIFICATION, LANGUAGE)}
_OF_DATA = {"text": LANGUAGE}


def task_of(data: str) -> Task:
    """What is done with the data set of this name."""
    return _OF_DATA.get(data, CLASSIFICATION)


def compared(comparison: Mapping[str, Any]) -> Task:
    """The task of a comparison; those written before there was a second one do not name theirs."""
    return TASKS[comparison.get("task", CLASSIFICATION.name)]
