"""Rules that go back layer by layer, as backpropagation does, with other weights on the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bpfree.errors import OptionError, choice
from bpfree.feedback.random import draw
from bpfree.mechanisms.layerwise.kolen_pollack import KolenPollackMechanism
from bpfree.mechanisms.layerwise.mechanism import LayerwiseMechanism
from bpfree.mechanisms.layerwise.rule import LayerwiseRule
from bpfree.mechanisms.layerwise.weight_mirror import WeightMirrorMechanism
from bpfree.plan import Plan


@dataclass(frozen=True)
class FA(LayerwiseRule):
    """Feedback alignment: B_l is a fixed random matrix of W_l's shape. Source: Lillicrap et al. 2016.

    ``attachment.feedback[name]`` is the B of the layer of that name.

    Args:
        distribution: ``"uniform"`` or ``"normal"``; mean zero and the standard deviation that the layer's weights
            have when the rule first runs (that of PyTorch's initialization, if they are all alike then).
    """

    distribution: Literal["uniform", "normal"] = "uniform"

    def __post_init__(self) -> None:
        choice("distribution", self.distribution, ("uniform", "normal"))

    def draw(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """B, of ``weight``'s shape."""
        return _random_like(weight, self.distribution, generator) * _deviation(weight)


@dataclass(frozen=True)
class SignSymmetry(LayerwiseRule):
    """Sign symmetry: the way back uses the signs of W and other magnitudes.

    Args:
        magnitude: ``"uniform"`` B = s sign(W) (uSF, Liao et al. 2016); ``"fixed"`` B = |M| sign(W) with M drawn once
            (frSF); ``"batch"`` the same with M drawn anew in every forward pass (brSF) (Moskovitz et al. 2018). s is
            the standard deviation of the layer's weights when the rule first runs, their initial one for a new
            model, and M is normal with that standard deviation. ``"batch"`` cannot be compiled as one graph.
    """

    magnitude: Literal["uniform", "fixed", "batch"] = "uniform"

    def __post_init__(self) -> None:
        choice("magnitude", self.magnitude, ("uniform", "fixed", "batch"))

    @property
    def redraws(self) -> bool:
        """True for ``"batch"``."""
        return self.magnitude == "batch"

    def draw(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """|M| for ``"fixed"``, else the number s."""
        s = _deviation(weight)
        return _random_like(weight, "normal", generator).abs() * s if self.magnitude == "fixed" else s

    def backward_weight(self, weight: Tensor, kept: Tensor, generator: Callable[[], torch.Generator]) -> Tensor:
        """Magnitude times sign(W), of ``weight``'s shape."""
        if self.magnitude == "batch":
            kept = _random_like(weight, "normal", generator()).abs() * kept
        return kept * weight.sign()


@dataclass(frozen=True)
class KolenPollack(FA):
    """Kolen-Pollack learning: B_l begins as feedback alignment's and gets the gradient of W_l in every step.

    Where W_l and B_l take the same steps and both decay, W_l - B_l shrinks by the decay alone: by 1 - lr decay in each
    step of SGD or AdamW, whatever the gradients are. So give one optimizer both, with a weight decay above zero::

        torch.optim.SGD([*model.parameters(), *attachment.parameters()], lr=.1, weight_decay=1e-3)

    ``attachment.feedback[name]`` is the parameter B of the layer of that name; a backward pass leaves a copy of W's
    gradient in its ``.grad``. Source: Kolen and Pollack 1994; Akrout et al. 2019.

    Args:
        distribution: Of the first B: ``"uniform"`` or ``"normal"``; mean zero and the standard deviation that the
            layer's weights have when the rule first runs.
    """

    def mechanism(self, plan: Plan) -> LayerwiseMechanism:
        """Join every layer to its input through a parameter B."""
        return KolenPollackMechanism(self, plan)


@dataclass(frozen=True)
class WeightMirror(FA):
    """Weight mirrors: B_l learns W_l from noise that is sent through layer l alone.

    B <- (1 - decay) B + (rate / n) sum_k y_k xi_k^T with n vectors xi of mean 0 and variance 1 and y = W xi, no bias
    and no other layer. E[y xi^T] = W, so that B goes to (rate / decay) W. A convolution's xi is one window of its
    input and a transposed convolution's one point: every entry of W then has n terms, whatever the padding and the
    stride. Source: Akrout et al. 2019.

    A mirror step runs before every training forward pass but the first; ``attachment.mirror(steps)`` runs more, as
    before training. The noise comes from the rule's own generator and is the same on every process.

    Args:
        distribution: Of the first B, as in :class:`FA`.
        rate: The weight of one step's estimate of W.
        decay: What B loses in one step, in (0, 1]: outside B grows without bound, or swings. Equal to ``rate``, B goes
            to W.
        batch: n, the number of noise vectors of one step. B is off by noise of |W|^2 rate^2 fan_in /
            (n decay (2 - decay)).
        steps: The number of mirror steps before a training forward pass; 0 leaves all to ``attachment.mirror``.
    """

    rate: float = 0.01
    decay: float = 0.01
    batch: int = 64
    steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rate < float("inf"):
            raise OptionError(f"rate={self.rate} must be a positive number.")
        if not 0 < self.decay <= 1:
            raise OptionError(f"decay={self.decay} is not in (0, 1]: B would diverge, or swing about W.")
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
    """Numbers of mean 0 and variance 1 in ``weight``'s shape, precision and place."""
    drawn = draw(weight.shape, distribution, generator)
    return (drawn if distribution == "normal" else drawn * 3**0.5).to(weight)


def _deviation(weight: Tensor) -> Tensor:
    """The standard deviation of a layer's weights; where they are all alike, that of PyTorch's initialization.

    B would else be zero for ever behind a layer that begins at zero, and undefined for a single weight.
    """
    usual = (3 * max(1, weight[0].numel())) ** -0.5
    found = weight.std(correction=min(1, weight.numel() - 1))
    return torch.where(found > 0, found, usual)
