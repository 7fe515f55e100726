"""Alignment as the code of Launay et al. 2020 measures it on graphs, to compare with its table A.2.

It is measured at the deepest layer that feedback reaches, the first one. It differs from :func:`bpfree.alignment`:
gradients are those at the layer's output, below the non-linearity where feedback enters, so that what the non-linearity
blocks is zero in both; the network that learns is in evaluation mode and the reference, backpropagation, in training
mode, with dropout; numbers of at most 1e-8 count as zero; and a node whose numbers of both gradients add up to zero has
the cosine 1.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree.lab.tasks import PUBLISHED_ALIGNMENT
from bpfree.lab.tasks.learner import Learner
from bpfree.mechanisms.direct.rule import DirectRule
from bpfree.rerun.snapshot import preserved

_NOTHING = 1e-8


def alignment(learner: Learner, batch: Any) -> dict[str, float | None]:
    """Return mean and standard deviation over nodes, and the part of nodes without a direction in both.

    None of each where a rule sends no signals, or the model does not name its deepest layer.

    Args:
        learner: The model and its rule. A model says in ``deepest_layer`` which module gives the pre-activations.
        batch: The graph, with the classes of all nodes.
    """
    layer = getattr(learner.model, "deepest_layer", None)
    if not isinstance(learner.attachment.rule, DirectRule) or learner.attachment.rule.feedback is None or not layer:
        return dict.fromkeys(PUBLISHED_ALIGNMENT)
    with _mode(learner.model, training=False):
        signal = _gradient(learner, layer, batch)
    with learner.attachment.paused(), _mode(learner.model, training=True):
        exact = _gradient(learner, layer, batch)
    return dict(zip(PUBLISHED_ALIGNMENT, _compare(signal, exact), strict=True))


def _gradient(learner: Learner, layer: str, batch: Any) -> Tensor:
    """Return the gradient that arrives at the output ``(n, features)`` of a module."""
    outputs: list[Tensor] = []
    handle = learner.model.get_submodule(layer).register_forward_hook(lambda *passed: outputs.append(passed[2]))
    try:
        with preserved(learner.model, learner.attachment), learner.attachment.fixed(), torch.enable_grad():
            return torch.autograd.grad(learner.batch_loss(batch), outputs)[0]
    finally:
        handle.remove()


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Generator[None]:
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)


def _compare(signal: Tensor, exact: Tensor) -> tuple[float, float, float]:
    cosine, nothing = row_cosines(signal, exact)
    cosine = torch.where(nothing, 1.0, cosine)
    both_zero = torch.stack([(part.abs() <= _NOTHING).all(1) for part in (signal, exact)]).all(0)
    return float(cosine.mean()), float(cosine.std()), float(both_zero.float().mean())


def row_cosines(signal: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's cosine of two gradients ``(n, k)``, and which rows count as 1: their numbers add up to zero."""
    signal, exact = (F.threshold(part.abs(), _NOTHING, 0.0) * part.sign() / _NOTHING for part in (signal, exact))
    return F.cosine_similarity(exact, signal, dim=1, eps=_NOTHING), signal.sum(1) + exact.sum(1) == 0
