"""The processes of ``torch.distributed``, where there are several."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def ranks() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one; 0 where there is one."""
    return dist.get_rank() if ranks() > 1 else 0


def average_over_ranks(tensor: Tensor) -> Tensor:
    """The mean of ``tensor`` over the processes; as it is where there is one."""
    if ranks() > 1:
        tensor = tensor / ranks()
        dist.all_reduce(tensor)
    return tensor
