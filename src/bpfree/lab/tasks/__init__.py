"""The tasks. A new task is a reader in ``lab/data``, a learner here, and an entry in ``TASKS``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bpfree.lab.data.clicks import LOGS
from bpfree.lab.data.planetoid import PLANETOID
from bpfree.lab.data.scenes import SCENES
from bpfree.lab.tasks.task import Metric, Task

PUBLISHED_ALIGNMENT = ("published_alignment", "published_alignment_std", "published_alignment_zero")
"""Names of the numbers measured on graphs as in the code of Launay et al. 2020, see
:mod:`bpfree.lab.tasks.published`."""
PUBLISHED_COSINE = "cosine_published"
"""The name of a tap's number measured on images as in the code of Launay et al. 2019."""
SEPARATION = ("silhouette", "tsne_silhouette")
"""Names of the numbers measured on graphs if runs keep details, see :mod:`bpfree.lab.tasks.pictures`."""
TAKEN = "taken_epoch"
"""The name of the evaluation's number, counted from 1, whose weights a run with early stopping ends with."""

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
    beside=(
        Metric(
            name="word_perplexity",
            unit="",
            better="lower",
            about="the exponential of the summed cross-entropy of all tokens, divided by the number of words",
        ),
    ),
    measures=("word_perplexity", "words"),
)
GRAPHS = Task(
    name="graphs",
    learner="bpfree.lab.tasks.graphs.NodeClassification",
    metric=Metric(name="accuracy", unit=" %", better="higher", about="the percentage of nodes whose class is found"),
    samples="nodes",
    model="GCN",
    rules=("BP", "Shallow", "FA", "DFA", "DRTP"),
    batch_size=1,  # the graph
    steps=250,
    evaluations=10,
    lr=1e-2,
    schedule="constant",
    measures=(
        "accuracy_at_best_validation",
        "best_validation_accuracy",
        "best_validation_step",
        *PUBLISHED_ALIGNMENT,
        *SEPARATION,
    ),
)
LINKS = Task(
    name="links",
    learner="bpfree.lab.tasks.links.LinkPrediction",
    metric=Metric(
        name="auc",
        unit="",
        better="higher",
        about="the probability that an edge scores higher than a pair without one (area under the ROC curve)",
        digits=3,
    ),
    samples="edges",
    model="GraphEncoder",
    rules=("BP", "Shallow", "FA", "DFA"),
    batch_size=1,
    steps=400,
    evaluations=10,
    lr=1e-2,
    schedule="constant",
    measures=("average_precision", "validation_auc", "validation_average_precision"),
)
CLICKS = Task(
    name="clicks",
    learner="bpfree.lab.tasks.clicks.ClickPrediction",
    metric=Metric(
        name="auc",
        unit="",
        better="higher",
        about="the probability that a row with a click scores higher than one without (area under the ROC curve)",
        digits=4,
    ),
    samples="rows",
    model="DeepFM",
    rules=("BP", "Shallow", "DFA"),
    batch_size=2048,
    epochs=5,
    lr=3e-4,
    schedule="constant",
    evaluation_batch=8192,
    alignment_samples=2048,
    beside=(
        Metric(
            name="log_loss",
            unit="",
            better="lower",
            about="the mean binary cross-entropy of a row, in nats",
            digits=4,
        ),
        Metric(
            name="calibration",
            unit="",
            better="higher",
            about="the mean of the predicted probabilities over the share of clicks: 1 at best",
            digits=3,
        ),
    ),
    chosen_by="validation_auc",
    measures=("validation_auc", "log_loss", "validation_log_loss", "calibration", "calibration_error", TAKEN),
)

VIEWS = Task(
    name="views",
    learner="bpfree.lab.tasks.views.ViewSynthesis",
    metric=Metric(
        name="psnr",
        unit=" dB",
        better="higher",
        about="the peak signal-to-noise ratio of held-out views, the mean of the views' values",
    ),
    samples="views",
    model="NeRFReleased",
    rules=("BP", "Shallow", "DFA"),
    batch_size=1024,  # rays
    steps=5000,
    evaluations=5,
    lr=5e-4,
    schedule="constant",
    alignment_samples=256,  # rays
    beside=(
        Metric(
            name="ssim",
            unit="",
            better="higher",
            about="the structural similarity of held-out views (Wang et al. 2004), the mean of the views' values",
            digits=3,
        ),
    ),
    measures=("ssim", "noise", "dual_psnr", "dual_ssim", "dual_noise"),
)

TASKS = {task.name: task for task in (CLASSIFICATION, LANGUAGE, GRAPHS, LINKS, CLICKS, VIEWS)}
_OF_DATA = {
    "text": LANGUAGE,
    **{name: LINKS if name.endswith("-links") else GRAPHS for name in PLANETOID},
    **dict.fromkeys(LOGS, CLICKS),
    **dict.fromkeys(SCENES, VIEWS),
}


def task_of(data: str) -> Task:
    """Return the task for the data set of this name."""
    return _OF_DATA.get(data, CLASSIFICATION)


def compared(comparison: Mapping[str, Any]) -> Task:
    """Return the task of a comparison; comparisons written before there was a second task do not name it."""
    return TASKS[comparison.get("task", CLASSIFICATION.name)]
