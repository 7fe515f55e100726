"""The mechanism of weight mirrors: backward weights that learn the forward ones from noise, layer by layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bpfree.compiled_code import outside_compiled_code
from bpfree.distributed import whole
from bpfree.errors import OptionError, StateError
from bpfree.feedback.random import derived_seed, draw
from bpfree.layers.function import current_weight
from bpfree.layers.kinds import matrices
from bpfree.mechanisms.layerwise.mechanism import LayerwiseMechanism
from bpfree.mechanisms.layerwise.rule import LayerwiseRule
from bpfree.plan import Plan
from bpfree.precision import in_own_precision


class WeightMirrorMechanism(LayerwiseMechanism):
    """Backward weights that take mirror steps between training passes.

    ``feedback[name]`` is B of the layer ``name``.

    Args:
        rule: The rule.
        plan: The model and the options.
        rate: The weight of one step's estimate of W.
        decay: The share of B that one step takes away.
        batch: The number of noise vectors of one step.
        steps: The number of steps before a training forward pass.
    """

    learns = True

    def __init__(self, rule: LayerwiseRule, plan: Plan, *, rate: float, decay: float, batch: int, steps: int) -> None:
        super().__init__(rule, plan)
        self._rate, self._decay, self._batch, self._steps = rate, decay, batch, steps
        self.feedback.numbers["mirrored"] = 0

    def mirror(self, steps: int) -> None:
        """Take ``steps`` mirror steps in every layer that has backward weights.

        Args:
            steps: The number of steps.

        Raises:
            OptionError: ``steps`` is negative.
            StateError: No forward pass has drawn the backward weights yet.
        """
        if steps < 0:
            raise OptionError(f"steps={steps}: a number of mirror steps, 0 or more.")
        if not len(self.feedback):
            raise StateError(
                "there are no backward weights yet: run the model once, or attach(..., example_inputs=...), before "
                "mirror()."
            )
        self._mirror(steps)

    def _count_pass(self) -> None:
        if not self._fixed:
            self.feedback.numbers["passes"] += 1
            # The first pass may be the one that draws B.
            if self.feedback.numbers["passes"] > 1:
                self._mirror(self._steps)

    @outside_compiled_code
    @torch.no_grad()
    def _mirror(self, steps: int) -> None:
        for _ in range(steps):
            self.feedback.numbers["mirrored"] += 1
            for name in self.feedback:
                self._step(name, self._layers[name])

    def _step(self, name: str, layer: nn.Module) -> None:
        there = current_weight(layer)
        assert there is not None
        weight = whole(there)
        kept = self.feedback[name]
        written = kept.contiguous()
        W, B = matrices(layer, weight), matrices(layer, written)
        # In the precision of the weights, also where autocast surrounds the model.
        with in_own_precision(B):
            xi = self._noise(name, (W.shape[0], self._batch, W.shape[2]), W).to(B)
            y = xi @ W.to(B).mT
            B.baddbmm_(y.mT, xi, beta=1 - self._decay, alpha=self._rate / self._batch)
        if written is not kept:
            kept.copy_(written)

    def _noise(self, name: str, shape: tuple[int, ...], weight: Tensor) -> Tensor:
        """Draw numbers of mean 0 and variance 1, on ``weight``'s device."""
        numbers = self.feedback.numbers
        seed = derived_seed(numbers["seed"], self.plan.whole_name(name), "mirror", numbers["mirrored"])
        generator = torch.Generator(weight.device).manual_seed(seed)
        return draw(shape, "uniform", generator) * 3**0.5
