"""Alignment as the code of Launay et al. 2019 measures it on images, to compare with its tables 2 and 4.

It differs from :func:`bpfree.alignment` in three ways: samples where a signal is zero count, with the cosine 0; the
network that learns is in evaluation mode, and the reference, backpropagation, in training mode, with dropout and the
statistics of the batch; and the batch is the first 128 test images.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

import bpfree
from bpfree.lab.tasks.learner import Learner

_SAMPLES = 128


def cosines(learner: Learner, batch: tuple[Any, Tensor]) -> dict[str, float]:
    """Return the mean cosine at every tap and every other layer where alignment is measured, by name.

    Args:
        learner: The model and its rule.
        batch: Images ``(N, channels, height, width)`` and their classes ``(N,)``.

    Raises:
        TapSelectionError: The rule sends no signals.
    """
    batch = (batch[0][:_SAMPLES], batch[1][:_SAMPLES])
    modes = iter((False, True))  # the rule's pass comes first, then backpropagation's

    def loss() -> Tensor:
        learner.model.train(next(modes))
        return learner.batch_loss(batch)

    training = learner.model.training
    try:
        report = bpfree.alignment(learner.attachment, loss, jacobian=False, layers=learner.aligned_layers)
    finally:
        learner.model.train(training)
    return {tap.name: _with_zeros(tap, len(batch[1])) for tap in report.taps}


def _with_zeros(tap: bpfree.TapAlignment, samples: int) -> float:
    return 0.0 if math.isnan(tap.cosine_mean) else tap.cosine_mean * tap.n_valid / samples
