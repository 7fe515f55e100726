"""The one thing that comes back: the error of every micro-batch, from the last stage to all others."""

from __future__ import annotations

from collections import deque
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage

from bpfree.errors import StageError
from bpfree.pipeline.agreement import Agreement


class Channel:
    """Broadcasts errors in the order of the micro-batches, while the stages work.

    It has a process group of its own: on NCCL a broadcast must not wait behind the activations under way.

    Args:
        stage: This process's stage.
        agreement: What an error looks like.

    Raises:
        StageError: The processes belong to different numbers of groups.
    """

    def __init__(self, stage: PipelineStage, agreement: Agreement) -> None:
        group = stage.group or dist.group.WORLD
        self._device = torch.device(stage.device)
        ranks = dist.get_process_group_ranks(group)
        self._group = _another_group(stage.group, ranks, _timeout(group, self._device))
        self._source = ranks[-1]
        self._agreement = agreement
        self._sending: deque[tuple[Any, Tensor]] = deque()
        self.sent_bytes = 0

    def send(self, error: Tensor) -> None:
        """Start the broadcast of dL/do, in the last stage."""
        error = error.detach().contiguous()
        work = dist.broadcast(error, src=self._source, group=self._group, async_op=True)
        self._sending.append((work, error))
        self.sent_bytes += error.numel() * error.element_size() * (dist.get_world_size(self._group) - 1)

    def sent(self) -> None:
        """Wait until every error is on its way."""
        while self._sending:
            work, _ = self._sending.popleft()
            work.wait()

    def expect(self) -> Arrival:
        """Make ready for the next error, in a stage before the last."""
        agreement = self._agreement
        buffer = torch.empty(agreement.shape, dtype=agreement.dtype, device=self._device)
        return Arrival(dist.broadcast(buffer, src=self._source, group=self._group, async_op=True), buffer)


class Arrival:
    """An error that is under way."""

    def __init__(self, work: Any, buffer: Tensor) -> None:
        self._work, self._buffer = work, buffer

    def wait(self) -> Tensor:
        """The error, once it is there."""
        self._work.wait()
        return self._buffer


def _another_group(group: Any, ranks: list[int], timeout: timedelta) -> Any:
    """A process group beside ``group``, of the same ``ranks``; None stands for all processes."""
    if group is None:
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


def _timeout(group: Any, device: torch.device) -> timedelta:
    """How long the stages' own group waits before it gives up."""
    timeout: timedelta = group._get_backend(device).options._timeout
    return timeout
