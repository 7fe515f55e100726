"""The processes of ``torch.distributed``, where there are several."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn


def ranks() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process; 0 if there is only one."""
    return dist.get_rank() if ranks() > 1 else 0


def average_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of ``tensor`` over the processes; ``tensor`` itself if there is only one."""
    if ranks() > 1:
        tensor = tensor / ranks()
        dist.all_reduce(tensor)
    return tensor


def is_sharded(model: nn.Module) -> bool:
    """Return whether ``model``, or a part of it, has been given to ``fully_shard``."""
    return any(hasattr(module, "set_requires_gradient_sync") for module in model.modules())


def whole(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in full; it is gathered if each process holds only a part of it."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def shared_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Return a full gradient for ``parameter``: if it is sharded, this process's part of the mean over processes."""
    if not hasattr(parameter, "full_tensor"):
        return gradient
    from torch.distributed.tensor import DTensor, Partial

    sharded: Any = parameter
    mesh = sharded.device_mesh
    parts = DTensor.from_local(gradient / mesh.size(), mesh, [Partial()] * mesh.ndim)
    return parts.redistribute(placements=sharded.placements)
