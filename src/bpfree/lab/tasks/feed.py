"""The batches of a run: for training, for evaluation, and for measuring."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch

from bpfree.lab.data.batches import InOrder, Shuffled, TrainingOrder, augmented_batches, batches
from bpfree.lab.data.samples import Sampled
from bpfree.lab.data.splits import Splits
from bpfree.lab.settings import RunSettings
from bpfree.lab.tasks.task import Task

_EVALUATED_NUMBERS = 4_000_000  # in the inputs of one batch: 1,000 images of 3 x 32 x 32, 26 of 3 x 224 x 224


class Loader(Iterable[Any], Sized, Protocol):
    """Batches, and their number."""


@dataclass(frozen=True)
class Feed:
    """The batches of a run.

    Attributes:
        train: Those of one part of the run.
        evaluation: Those that are evaluated behind each part; None where the learner does so by itself.
        first: Gives one of so many samples that is like those of ``train``, to measure a step with; a graph is one.
        aligned: Gives the one that alignment is measured on; it may be large.
    """

    train: Loader
    evaluation: Loader | None
    first: Callable[[int], Any]
    aligned: Callable[[], Any]


def sampled(settings: RunSettings, data: Sampled, task: Task, order: TrainingOrder | None = None) -> Feed:
    """Return batches of samples: for training in ``order``, and as they come for evaluation.

    Args:
        settings: The settings of the run.
        data: The samples.
        task: The task.
        order: The order in training; by default one drawn anew for each pass.
    """
    if order is None:
        order = Shuffled(len(data.train), settings.batch_size, settings.seed, settings.length.steps)
    if settings.augmentation:
        images = cast(Splits, data)
        train = augmented_batches(
            images.train, cast(Shuffled, order), settings.augmentation, images.normalization.black
        )
    else:
        train = batches(data.train, order)
    # Fewer large samples at a time, so that their activations fit in memory.
    size = max(1, min(task.evaluation_batch, _EVALUATED_NUMBERS // math.prod(data.shape)))
    first = data.evaluation.take(torch.arange(min(len(data.evaluation), task.alignment_samples)))
    return Feed(
        train,
        batches(data.evaluation, InOrder(len(data.evaluation), size)),
        lambda samples: data.train.batch(torch.arange(min(samples, len(data.train)))),
        lambda: first.batch(torch.arange(len(first))),
    )
