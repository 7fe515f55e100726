"""The estimating pass of one stage of a pipeline: it is complete when the last stage has told the output's tangent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from bpfree.forward_mode.estimate import Observation, Response
from bpfree.mechanisms.direct.delivery import PassMemory


@dataclass(frozen=True)
class StageEstimate:
    """The result of one stage's estimating pass.

    Attributes:
        leaving: The tangents of the floating point tensors that the stage gives to the next one, in order; in the last
            stage odot, the tangent where the error is taken.
        response: The response of the pass, with its perturbations.
        memory: The memory of the stage's forward pass.
        c: The number of the error's features.
        seen: Takes the observation.
    """

    leaving: Sequence[Tensor]
    response: Response
    memory: PassMemory
    c: int
    seen: Callable[[PassMemory, Observation], None]

    def complete(self, change: Tensor, total: Callable[[Tensor], Tensor]) -> None:
        """Let the feedback see what the whole model has answered.

        Args:
            change: odot, of the shape of the samples' error.
            total: Returns the sum of a tensor over all stages.
        """
        sites = self.memory.sites
        if not sites:
            return
        part, rows = self.response.part, sites[0].error
        rows = rows if part is None else part.of_error(rows)
        observation = self.response.observation(rows.of(change, self.c), sites)
        self.seen(self.memory, replace(observation, total=total))
