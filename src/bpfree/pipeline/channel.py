"""Messages from the last stage to all others: the error of every micro-batch, and the output's tangent."""

from __future__ import annotations

from collections import deque
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage

from bpfree.errors import StageError
from bpfree.pipeline.agreement import Agreement, Outline
from bpfree.pipeline.together import ranks_of


class Channel:
    """Broadcasts errors in the order of the micro-batches, while the stages work.

    The output's tangent of an estimating pass goes before the error of its micro-batch.

    It has a process group of its own: on NCCL a broadcast must not wait for activations that are being sent.

    Args:
        stage: This process's stage.
        agreement: The shape and dtype of an error.

    Raises:
        StageError: The processes belong to different numbers of groups.
    """

    def __init__(self, stage: PipelineStage, agreement: Agreement) -> None:
        self._device = torch.device(stage.device)
        self._group = _another_group(stage)
        self._source = ranks_of(stage)[-1]
        self._agreement = agreement
        self._sending: deque[tuple[Any, Tensor]] = deque()
        self._begun: _Number | None = None
        self.sent_bytes = self.sent_change_bytes = 0

    def begin(self, number: int) -> None:
        """Say, ahead of its errors, which batch they belong to."""
        told = torch.tensor([number], device=self._device)
        work = dist.broadcast(told, src=self._source, group=self._group, async_op=True)
        if dist.get_rank() == self._source:
            self._sending.append((work, told))
        else:
            self._begun = _Number(work, told, number)

    def send(self, error: Tensor) -> None:
        """Start the broadcast of dL/do, in the last stage."""
        self.sent_bytes += self._send(error)

    def send_change(self, change: Tensor) -> None:
        """Start the broadcast of odot, in the last stage."""
        self.sent_change_bytes += self._send(change)

    def _send(self, tensor: Tensor) -> int:
        """Start a broadcast, and return the bytes that it sends to all receivers."""
        tensor = tensor.detach().contiguous()
        work = dist.broadcast(tensor, src=self._source, group=self._group, async_op=True)
        self._sending.append((work, tensor))
        return tensor.numel() * tensor.element_size() * (dist.get_world_size(self._group) - 1)

    def sent(self) -> None:
        """Wait until every error has been sent off."""
        while self._sending:
            work, _ = self._sending.popleft()
            work.wait()

    def expect(self) -> Arrival:
        """Make ready for the next error, in a stage before the last."""
        return self._expect(self._agreement.shape, self._agreement.dtype)

    def expect_change(self, outline: Outline) -> Arrival:
        """Make ready for the next odot, of this shape and dtype, in a stage before the last."""
        return self._expect(*outline)

    def _expect(self, shape: torch.Size, dtype: torch.dtype) -> Arrival:
        buffer = torch.empty(shape, dtype=dtype, device=self._device)
        begun, self._begun = self._begun, None
        return Arrival(dist.broadcast(buffer, src=self._source, group=self._group, async_op=True), buffer, begun)


class Sum:
    """Adds up a tensor of every stage.

    It has a process group of its own: stages come to it at other times than to the channel's broadcasts.

    Args:
        stage: This process's stage.
    """

    def __init__(self, stage: PipelineStage) -> None:
        self._group = _another_group(stage)
        self.sent_bytes = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the sum; all stages call this together."""
        result, count = tensor.contiguous().clone(), dist.get_world_size(self._group)
        dist.all_reduce(result, group=self._group)
        # As a ring sends it: every part goes round once to be added and once to be told.
        self.sent_bytes += 2 * (count - 1) * result.numel() * result.element_size() // count
        return result


class _Number:
    """The number of a batch whose errors come, as the last stage counts; ``own`` is this stage's count."""

    def __init__(self, work: Any, told: Tensor, own: int) -> None:
        self._work, self._told, self._own = work, told, own

    def check(self) -> None:
        """Raise StageError unless both count alike; on an accelerator the question would stall its queue."""
        self._work.wait()
        if self._told.device.type == "cpu" and int(self._told) != self._own:
            raise StageError(
                f"the last stage sends the errors of its batch number {int(self._told)}, and this one waits for those "
                f"of its own number {self._own}: some process has called eval() where others have called step(). Call "
                "the same in every process, for every batch. No weight of this stage has learned from these errors."
            )


class Arrival:
    """A tensor that is being sent; the first one of a batch knows the batch's number."""

    def __init__(self, work: Any, buffer: Tensor, begun: _Number | None) -> None:
        self._work, self._buffer, self._begun = work, buffer, begun

    def wait(self) -> Tensor:
        """Return the tensor when it has arrived."""
        if self._begun is not None:
            self._begun.check()
        self._work.wait()
        return self._buffer


def _another_group(stage: PipelineStage) -> Any:
    """Make a process group beside that of the stages, of the same processes."""
    group, ranks, timeout = stage.group, ranks_of(stage), _timeout(stage)
    if group is None:  # all processes
        return dist.new_group(ranks, timeout=timeout)
    # The others do not take part, and torch then finds the name of the new group from how many there are.
    counts: list[Any] = [None] * len(ranks)
    dist.all_gather_object(counts, len(dist.distributed_c10d._world.pg_names), group=group)
    if len(set(counts)) > 1:
        raise StageError(
            f"the processes {', '.join(map(str, ranks))} belong to {', '.join(map(str, counts))} process groups: torch "
            "can make no group of a part of all processes then. Make the stages' groups for all processes alike, with "
            "torch.distributed.init_device_mesh()."
        )
    return dist.new_group(ranks, timeout=timeout, use_local_synchronization=True)


def _timeout(stage: PipelineStage) -> timedelta:
    """Return how long the stages' own group waits before it gives up."""
    group: Any = stage.group or dist.group.WORLD
    timeout: timedelta = group._get_backend(torch.device(stage.device)).options._timeout
    return timeout
