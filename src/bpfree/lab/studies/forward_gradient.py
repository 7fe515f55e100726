"""The part of the gradient that a forward gradient finds (GrAPE, figure 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bpfree
from bpfree.lab.models import MLP

_INPUTS, _CLASSES = 128, 10


def forward_gradient_cosine(
    depth: int, batch: int, draws: Sequence[int], seed: int, width: int = 128, centred: bool = False
) -> dict[str, float]:
    """Return the cosine of the activity-perturbed forward gradient and the gradient, of the first layer's weights.

    A ReLU network with He's initial weights, before any training, on inputs between 0 and 1, as pixels, whose classes
    a random linear map gives, and the mean cross-entropy. Every hidden layer is perturbed at once, each sample by its
    own draw.

    Args:
        depth: Linear layers behind the first.
        batch: Samples that the gradient is the mean of.
        draws: After how many averaged estimates (forward passes with tangents) the cosine is taken.
        seed: Of weights, data and perturbations.
        width: Of every hidden layer.
        centred: Inputs between -1/2 and 1/2 in place of those. Samples then have nearly orthogonal gradients.

    Returns:
        ``draws N``: the cosine, for every number of draws.
    """
    torch.manual_seed(seed)
    model = MLP([_INPUTS], _CLASSES, hidden=[width] * depth, activation="relu", initialization="he")
    x = torch.rand(batch, _INPUTS) - 0.5
    y = (x @ torch.randn(_INPUTS, _CLASSES)).argmax(1)
    if not centred:
        x = x + 0.5
    first = next(layer for layer in model if isinstance(layer, nn.Linear))

    def gradient() -> Tensor:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        return first.weight.grad.double()  # type: ignore[union-attr]

    exact = gradient()
    attachment = bpfree.attach(model, bpfree.ForwardGradient("activations"), seed=seed)
    try:
        return {f"draws {count}": cosine for count, cosine in _averaged(gradient, exact, draws).items()}
    finally:
        attachment.detach()


def _averaged(estimate: Callable[[], Tensor], exact: Tensor, counts: Sequence[int]) -> dict[int, float]:
    """Return the cosine of ``exact`` and the mean of as many estimates, for every count."""
    total, found = torch.zeros_like(exact), {}
    for number in range(1, max(counts) + 1):
        total += estimate()
        if number in counts:
            found[number] = float(F.cosine_similarity(total.flatten(), exact.flatten(), dim=0))
    return found
