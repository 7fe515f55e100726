"""Actions of all processes together: if one of them fails, all raise, and none waits for the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage

from bpfree.distributed import ranks
from bpfree.errors import BpfreeError, CheckpointError

Result = TypeVar("Result")


def ranks_of(stage: PipelineStage) -> list[int]:
    """Return the ranks of the processes of the stages' group, the first stage's first."""
    return dist.get_process_group_ranks(stage.group or dist.group.WORLD)


def gathered(value: Any, group: Any = None) -> list[Any]:
    """Return the ``value`` of every process of ``group``, by rank; None stands for all processes."""
    if ranks() == 1:
        return [value]
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, value, group=group)
    return found


def agreed(action: Callable[[], Result], kind: type[BpfreeError] = CheckpointError, group: Any = None) -> list[Result]:
    """Run ``action`` in every process of ``group``; what each returned, by rank.

    Raises:
        BpfreeError: Of this ``kind``: it failed in another process. In that one its own exception is raised.
    """
    failure: Exception | None = None
    result: Any = None
    try:
        result = action()
    except Exception as raised:  # whatever it is, the others must hear of it
        failure = raised
    told = gathered((result, None if failure is None else str(failure)), group)
    if failure is not None:
        raise failure
    failed = [f"process {rank}: {says}" for rank, (_, says) in enumerate(told) if says is not None]
    if failed:
        raise kind("; ".join(failed))
    return [result for result, _ in told]
