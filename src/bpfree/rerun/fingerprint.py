"""A few numbers of a tensor: enough to see, with little memory, whether another run gives the same tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_SAMPLES = 256


@dataclass(frozen=True)
class Fingerprint:
    """A small summary of a tensor of floating point numbers.

    Attributes:
        shape: Its shape.
        numbers: Some of its numbers, and its norm.
        precision: The spacing of numbers near 1 in the precision that it was computed in.
    """

    shape: torch.Size
    numbers: Tensor
    precision: float

    @classmethod
    def of(cls, tensor: Tensor) -> Fingerprint:
        """Summarize ``tensor``."""
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // _SAMPLES)].double()
        norm = torch.linalg.vector_norm(flat, dtype=torch.promote_types(flat.dtype, torch.float32)).double()
        precision = torch.finfo(tensor.dtype).eps
        kind = tensor.device.type
        if torch.is_autocast_enabled(kind):
            precision = max(precision, torch.finfo(torch.get_autocast_dtype(kind)).eps)
        return cls(tensor.shape, torch.cat([some, norm[None]]), precision)

    @property
    def tolerance(self) -> float:
        """The difference allowed between two runs, relative to the largest number: half the digits may be rounding."""
        return math.sqrt(self.precision)

    def distance(self, other: Fingerprint) -> float:
        """Return the largest difference, relative to the largest number of the sample. NaN equals NaN here."""
        if self.shape != other.shape:
            return math.inf
        ours, theirs = self.numbers.nan_to_num(), other.numbers.nan_to_num()
        if not torch.equal(self.numbers.isnan(), other.numbers.isnan()):
            return math.inf
        apart, size = (ours - theirs).abs(), ours.abs()
        # The norm, which is last, grows with the tensor: it is its own measure.
        pairs = (
            (apart[:-1].max(), size[:-1].max()) if len(apart) > 1 else (apart[-1], size[-1]),
            (apart[-1], size[-1]),
        )
        return max(float(far) / max(float(largest), 1e-300) for far, largest in pairs)

    def differs_from(self, other: Fingerprint) -> bool:
        """Return whether the difference is larger than rounding explains."""
        return self.distance(other) > max(self.tolerance, other.tolerance)
