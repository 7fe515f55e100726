"""Rules that go back layer by layer, as backpropagation does, with other weights on the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bpfree.errors import OptionError, choice, fraction, positive
from bpfree.feedback.random import draw
from bpfree.mechanisms.layerwise.kolen_pollack import KolenPollackMechanism
from bpfree.mechanisms.layerwise.mechanism import LayerwiseMechanism
from bpfree.mechanisms.layerwise.rule import LayerwiseRule
from bpfree.mechanisms.layerwise.weight_mirror import WeightMirrorMechanism
from bpfree.plan import Plan


@dataclass(frozen=True)
class FA(LayerwiseRule):
    r"""Feedback alignment: a layer passes the error down through a fixed random B_l of W_l's shape.

    .. math:: d_{l-1} = \delta_l\,B_l \quad\text{in place of}\quad \delta_l\,W_l

    The row vector delta_l is the gradient at the layer's output, before the non-linearity.
    ``attachment.feedback[name]`` is the B of the layer of that name. Source: Lillicrap et al. 2016.

    Args:
        distribution: ``"uniform"`` or ``"normal"``. The mean is zero. The standard deviation is that of the layer's
            weights when the rule first runs, or that of PyTorch's initialization where all weights are equal then.
    """

    distribution: Literal["uniform", "normal"] = "uniform"

    def __post_init__(self) -> None:
        choice("distribution", self.distribution, ("uniform", "normal"))

    def draw(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Draw B, of ``weight``'s shape."""
        return _random_like(weight, self.distribution, generator) * _deviation(weight)


@dataclass(frozen=True)
class SignSymmetry(LayerwiseRule):
    r"""Sign symmetry: a layer passes the error down through the signs of W with other magnitudes.

    .. math:: B_l = s\,\mathrm{sign}(W_l) \qquad\text{or}\qquad B_l = |M_l| \odot \mathrm{sign}(W_l)

    Args:
        magnitude: ``"uniform"``: the number s (uSF, Liao et al. 2016). ``"fixed"``: random magnitudes M, drawn once
            (frSF). ``"batch"``: M is drawn again in every forward pass (brSF; both Moskovitz et al. 2018), which cannot
            be compiled as one graph. s is the standard deviation of the layer's weights when the rule first runs; M
            is normal with that standard deviation.
    """

    magnitude: Literal["uniform", "fixed", "batch"] = "uniform"

    def __post_init__(self) -> None:
        choice("magnitude", self.magnitude, ("uniform", "fixed", "batch"))

    @property
    def redraws(self) -> bool:
        """True for ``"batch"``."""
        return self.magnitude == "batch"

    def draw(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Draw the magnitudes of M for ``"fixed"``; else return the number s."""
        s = _deviation(weight)
        return _random_like(weight, "normal", generator).abs() * s if self.magnitude == "fixed" else s

    def backward_weight(self, weight: Tensor, kept: Tensor, generator: Callable[[], torch.Generator]) -> Tensor:
        """Return the magnitudes times sign(W), of ``weight``'s shape."""
        if self.magnitude == "batch":
            kept = _random_like(weight, "normal", generator()).abs() * kept
        return kept * weight.sign()


@dataclass(frozen=True)
class KolenPollack(FA):
    r"""Kolen-Pollack learning: B_l begins as in feedback alignment and gets the gradient of W_l in every step.

    .. math:: W_l - B_l \leftarrow (1 - \eta\lambda)\,(W_l - B_l)

    W and B take the same steps, so their difference shrinks by the weight decay alone, in each step of SGD or AdamW
    with learning rate eta and decay lambda, whatever the gradients are. Give one optimizer both lists, with a weight
    decay above zero::

        torch.optim.SGD([*model.parameters(), *attachment.parameters()], lr=.1, weight_decay=1e-3)

    ``attachment.feedback[name]`` is the parameter B of the layer of that name; a backward pass leaves a copy of W's
    gradient in its ``.grad``. Source: Kolen and Pollack 1994; Akrout et al. 2019.

    Args:
        distribution: The distribution of the first B, as in :class:`bpfree.FA`.
    """

    def mechanism(self, plan: Plan) -> LayerwiseMechanism:
        """Join every layer to its input through a parameter B."""
        return KolenPollackMechanism(self, plan)


@dataclass(frozen=True)
class WeightMirror(FA):
    r"""Weight mirrors: B_l learns W_l from noise that is sent through layer l alone.

    .. math:: B_l \leftarrow (1 - \gamma)\,B_l + \frac{\rho}{n} \sum_{k=1}^{n} y_k\,\xi_k^\top, \qquad y_k = W_l\,\xi_k

    The n vectors xi have mean 0 and variance 1; no bias and no other layer takes part. E[y xi^T] = W, so B goes to
    (rate / decay) W. In a convolution xi is one window of its input, in a transposed convolution one point: every entry
    of W then has n terms, whatever the padding and the stride. Source: Akrout et al. 2019.

    A mirror step runs before every training forward pass except the first. ``attachment.mirror(steps)`` runs more of
    them, for example before training. The noise comes from the rule's own generator and is the same on every process.

    Args:
        distribution: The distribution of the first B, as in :class:`bpfree.FA`.
        rate: rho, the weight of one step's estimate of W.
        decay: gamma, the share of B that one step forgets, in (0, 1]; outside this range B grows without bound or
            oscillates. Where it equals ``rate``, B goes to W.
        batch: n, the number of noise vectors of one step. The squared error of B that is left is
            ``|W|^2 rate^2 fan_in / (n decay (2 - decay))``.
        steps: The number of mirror steps before a training forward pass; 0 leaves all of them to
            ``attachment.mirror``.
    """

    rate: float = 0.01
    decay: float = 0.01
    batch: int = 64
    steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("rate", self.rate)
        fraction("decay", self.decay, otherwise=": B would diverge, or swing about W")
        # Callers are not type-checked.
        if not isinstance(self.batch, int) or self.batch < 1:
            raise OptionError(f"batch={self.batch!r}: a whole number, at least one noise vector a step.")
        if not isinstance(self.steps, int) or self.steps < 0:
            raise OptionError(
                f"steps={self.steps!r}: a whole number, 0 or more mirror steps before each training pass."
            )

    def mechanism(self, plan: Plan) -> LayerwiseMechanism:
        """Join every layer to its input through a B that mirrors W."""
        return WeightMirrorMechanism(self, plan, rate=self.rate, decay=self.decay, batch=self.batch, steps=self.steps)


def _random_like(weight: Tensor, distribution: str, generator: torch.Generator) -> Tensor:
    """Draw numbers of mean 0 and variance 1 in ``weight``'s shape, precision and place."""
    drawn = draw(weight.shape, distribution, generator)
    return (drawn if distribution == "normal" else drawn * 3**0.5).to(weight)


def _deviation(weight: Tensor) -> Tensor:
    """Return the standard deviation of a layer's weights; where they are all alike, that of PyTorch's initialization.

    B would else be zero for ever behind a layer that begins at zero, and undefined for a single weight.
    """
    usual = (3 * max(1, weight[0].numel())) ** -0.5
    found = weight.std(correction=min(1, weight.numel() - 1))
    return torch.where(found > 0, found, usual)
