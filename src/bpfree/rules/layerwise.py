"""Rules that go back layer by layer, as backpropagation does, with other weights on the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bpfree.asymmetric import LayerwiseRule
from bpfree.draw import draw
from bpfree.errors import choice


@dataclass(frozen=True)
class FA(LayerwiseRule):
    """Feedback alignment: B_l is a fixed random matrix of W_l's shape. Source: Lillicrap et al. 2016.

    ``attachment.feedback[name]`` is the B of the layer of that name.

    Args:
        distribution: ``"uniform"`` or ``"normal"``; mean zero and the standard deviation that the layer's weights
            have when the rule first runs.
    """

    distribution: Literal["uniform", "normal"] = "uniform"

    def __post_init__(self) -> None:
        choice("distribution", self.distribution, ("uniform", "normal"))

    def draw(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """B, of ``weight``'s shape."""
        return _random_like(weight, self.distribution, generator) * weight.std()


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
        s = weight.std()
        return _random_like(weight, "normal", generator).abs() * s if self.magnitude == "fixed" else s

    def backward_weight(self, weight: Tensor, kept: Tensor, generator: Callable[[], torch.Generator]) -> Tensor:
        """Magnitude times sign(W), of ``weight``'s shape."""
        if self.magnitude == "batch":
            kept = _random_like(weight, "normal", generator()).abs() * kept
        return kept * weight.sign()


def _random_like(weight: Tensor, distribution: str, generator: torch.Generator) -> Tensor:
    """Numbers of mean 0 and variance 1 in ``weight``'s shape, precision and place."""
    drawn = draw(weight.shape, distribution, generator)
    return (drawn if distribution == "normal" else drawn * 3**0.5).to(weight)
