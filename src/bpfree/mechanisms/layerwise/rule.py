"""The base of the layerwise rules: it says which weights carry the error down."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bpfree.mechanisms.base import Mechanism, Rule
from bpfree.mechanisms.layerwise.mechanism import LayerwiseMechanism
from bpfree.plan import Plan


@dataclass(frozen=True)
class LayerwiseRule(Rule):
    """A rule whose linear and convolution layers pass the error down through B in place of W.

    Not backward-unlocked: a layer waits for the one above. Layers of other kinds pass their ordinary gradient.
    A rule of your own overrides :meth:`draw` and :meth:`backward_weight`.
    """

    def mechanism(self, plan: Plan) -> Mechanism:
        """Make the mechanism that joins every layer to its input through a function whose gradient uses B."""
        return LayerwiseMechanism(self, plan)

    @property
    def redraws(self) -> bool:
        """True if B is drawn anew in every forward pass."""
        return False

    @abstractmethod
    def draw(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Draw, once, the tensor to keep and save for one layer."""

    def backward_weight(self, weight: Tensor, kept: Tensor, generator: Callable[[], torch.Generator]) -> Tensor:
        """Return B, of ``weight``'s shape, for the backward pass of one forward pass: ``kept``, unless overridden.

        ``generator()`` returns a generator seeded for this layer and forward pass, for rules that draw anew.
        """
        return kept
