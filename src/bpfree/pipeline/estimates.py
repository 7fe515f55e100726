"""Estimating passes over several stages: tangents travel forward behind the activations, and the answer goes to all.

Every stage perturbs its own taps, by the seed that all share. What its output answers goes to the next stage as a
message of its own; odot, the tangent where the error is taken, goes from the last stage to every other, where the
perturbations and B live.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bpfree.errors import StageError
from bpfree.forward_mode.estimate import itself
from bpfree.forward_mode.tangents import can_have_tangent
from bpfree.mechanisms.learned.from_forward import ForwardLearnedMechanism
from bpfree.mechanisms.learned.stage_estimate import StageEstimate
from bpfree.pipeline.agreement import Agreement, Outline
from bpfree.pipeline.channel import Arrival, Channel, Sum
from bpfree.pipeline.stage import StageAttachment
from bpfree.pipeline.together import agreed, gathered, ranks_of
from bpfree.rerun.snapshot import preserved

_TAG = 1
"""The tag of tangents: activations have the same shape, and a backend with tags keeps them apart."""


class Estimates:
    """The estimating passes of one stage.

    Args:
        attachment: This process's stage, with feedback that learns from forward passes.
        agreement: What the stages know of each other.
        channel: Brings odot to all stages.
        args: The first micro-batch, in the first stage.
        kwargs: This stage's own arguments by name.

    Raises:
        StageError: The estimating pass fails in some stage; or a rule that adds up over all taps meets a stage without.
    """

    def __init__(
        self, attachment: StageAttachment, agreement: Agreement, channel: Channel, args: Any, kwargs: Any
    ) -> None:
        mechanism = attachment.mechanism
        assert isinstance(mechanism, ForwardLearnedMechanism)
        self._mechanism, self._channel, self._samples = mechanism, channel, agreement.rows.shape[0]
        stage = self._stage = attachment.stage
        self._ranks = ranks_of(stage)
        self._outlines = self._agree(attachment, agreement, args, kwargs)
        self._coming: deque[tuple[list[Any], list[Tensor]]] = deque()
        self._sum = self._make_sum(agreement) if mechanism.rule.mixes_taps else None
        self._sent_bytes = 0

    @property
    def sent_bytes(self) -> int:
        """The bytes that this stage has sent: tangents to the next stage, odot, and sums over the stages."""
        return self._sent_bytes + self._channel.sent_change_bytes + (self._sum.sent_bytes if self._sum else 0)

    # -- before the first batch ----------------------------------------------------------------------------------------

    def _agree(self, attachment: StageAttachment, agreement: Agreement, args: Any, kwargs: Any) -> list[list[Outline]]:
        """Try an estimating pass in every stage; return the shapes and dtypes of the tangents that leave each."""
        stage, mechanism = self._stage, self._mechanism

        def attempt() -> list[Outline]:
            given = args if stage.is_first else _numbers(agreement.given, stage.device)
            with preserved(stage.submod, attachment):
                entering = [] if stage.is_first else zero_tangents(mechanism, given, self._samples)
                leaving = mechanism.try_stage((given, kwargs), agreement.sites, self._samples, entering)
            if not stage.is_last:
                self._require_as_many(leaving, agreement)
            return [(tangent.shape, tangent.dtype) for tangent in leaving]

        return agreed(attempt, StageError, stage.group)

    def _require_as_many(self, leaving: Sequence[Tensor], agreement: Agreement) -> None:
        given = agreement.outputs
        floating = sum(dtype.is_floating_point for _, dtype in given)
        if len(leaving) != floating:
            raise StageError(
                f"stage {self._stage.stage_index} gives {floating} floating point tensors to the next one, and "
                f"{len(leaving)} of them have tangents of their own: it gives one tensor twice, or within another "
                "object. Give each tensor once, in a tuple."
            )

    def _make_sum(self, agreement: Agreement) -> Sum:
        bare = [number for number, taps in enumerate(gathered(len(agreement.sites), self._stage.group)) if not taps]
        if bare:
            raise StageError(
                f"{self._mechanism.rule} adds up over the taps of all stages, and stage {bare[0]} has no tap below the "
                "error. Move a tap there, or use bpfree.FDFA()."
            )
        return Sum(self._stage)

    # -- one micro-batch -----------------------------------------------------------------------------------------------

    def receive(self, ahead: int) -> None:
        """Make ready for the tangents of the next micro-batch, or the one ``ahead`` after it, if it is observed.

        Call it behind the receiving of that micro-batch's activations: both travel in one order.
        """
        if self._stage.is_first or not self._mechanism.is_due(ahead):
            return
        group, source = self._stage.group, self._ranks[self._stage.stage_index - 1]
        outlines = self._outlines[self._stage.stage_index - 1]
        buffers = [torch.empty(shape, dtype=dtype, device=self._stage.device) for shape, dtype in outlines]
        self._coming.append(([dist.irecv(buffer, source, group=group, tag=_TAG) for buffer in buffers], buffers))

    def run(self) -> tuple[StageEstimate, Arrival | Tensor, list[tuple[Any, Tensor]]] | None:
        """Run the estimating pass of the micro-batch that was just forwarded; None if it is not observed.

        Returns:
            The estimate, odot or its arrival, and the running sends.
        """
        if not self._mechanism.awaits_observing:
            return None
        works, entering = ([], []) if self._stage.is_first else self._coming.popleft()
        for work in works:
            work.wait()
        estimate = self._mechanism.observe_stage(self._samples, entering)
        if self._stage.is_last:
            (change,) = estimate.leaving
            self._channel.send_change(change)
            return estimate, change, []
        (outline,) = self._outlines[-1]
        return estimate, self._channel.expect_change(outline), [self._sent(tangent) for tangent in estimate.leaving]

    def _sent(self, tangent: Tensor) -> tuple[Any, Tensor]:
        tangent = tangent.contiguous()
        self._sent_bytes += tangent.numel() * tangent.element_size()
        to = self._ranks[self._stage.stage_index + 1]
        return dist.isend(tangent, to, group=self._stage.group, tag=_TAG), tangent

    def complete(self, estimate: StageEstimate, change: Tensor) -> None:
        """Let the feedback see odot, before it projects the micro-batch's error."""
        estimate.complete(change, itself if self._sum is None else self._sum)


def _numbers(outlines: Sequence[Outline], device: Any) -> tuple[Tensor, ...]:
    """Return random numbers in the place of what the stage before gives; zeros would hide what samples see."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for shape, dtype in outlines:
        numbers = torch.zeros(shape, dtype=dtype)
        made.append((numbers.normal_(generator=generator) if dtype.is_floating_point else numbers).to(device))
    return tuple(made)


def zero_tangents(mechanism: ForwardLearnedMechanism, given: Sequence[Any], samples: int) -> list[Tensor]:
    """Return tangents of zeros for the tensors that the stage before gives, of the samples that a pass takes."""
    part = mechanism.part_of(samples)
    args, _ = (given, {}) if part is None else part.of_call((tuple(given), {}))
    return [torch.zeros_like(one) for one in args if can_have_tangent(one)]
