"""The signals of backpropagation, which a cut pass is sent: it must then give backpropagation's gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bpfree.mechanisms.direct.survey import SurveyPass
from bpfree.verification.laws import GradientSketch


@dataclass(frozen=True)
class ExactSignals:
    """The signals of backpropagation at every tap, for a random gradient at every error.

    Attributes:
        directions: The gradients at the errors.
        signals: The gradients that arrive at the taps, by call.
        gradients: The gradients of the parameters, as a sketch.
        dtype: The precision of the errors.
    """

    directions: Mapping[str, Tensor]
    signals: Mapping[str, Tensor | None]
    gradients: GradientSketch
    dtype: torch.dtype

    @classmethod
    def of(cls, found: SurveyPass, parameters: Mapping[str, Tensor]) -> ExactSignals | None:
        """Send random gradients back through the whole graph of ``found``; None if nothing learns."""
        errors = {name: error for name, error in found.errors.items() if error.requires_grad}
        if not errors:
            return None
        directions = {name: _direction(error) for name, error in errors.items()}
        learning = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        gradients, arrived = GradientSketch.of(list(errors.values()), list(directions.values()), learning, found.taps)
        signals = dict(zip(found.places, arrived, strict=True))
        return cls(directions, signals, gradients, next(iter(errors.values())).dtype)

    def gradients_of(self, exits: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> GradientSketch | None:
        """Return the parameters' gradients from the same gradients at the errors of a cut pass; None if none learns."""
        left = {name: exits[name] for name in self.directions if name in exits and exits[name].requires_grad}
        learning = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        if not left or not learning:
            return None
        directions = [self.directions[name] for name in left]
        return GradientSketch.of(list(left.values()), directions, learning)[0]


def _direction(error: Tensor) -> Tensor:
    generator = torch.Generator(error.device).manual_seed(error.numel())
    return torch.randn(error.shape, generator=generator, device=error.device, dtype=torch.float32).to(error.dtype)
