"""Several processes that train one model, each on its part of every batch: ``torchrun`` starts them."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bpfree.lab.errors import SettingsError
from bpfree.lab.process.environment import device


def count() -> int:
    """Return the number of processes that ``torchrun`` has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def number() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def join() -> None:
    """Meet the other processes, if there are any."""
    if count() > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device() == "cuda" else "gloo")


def _wait() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        dist.barrier()


@contextmanager
def first_alone() -> Generator[None]:
    """Let the first process do alone what is within, and then the others, who find it done."""
    if number():
        _wait()
    yield
    if not number():
        _wait()


def agreed(answer: bool) -> bool:
    """Return the first process's answer in all of them."""
    if count() == 1:
        return answer
    told = torch.tensor([answer], device=device())
    dist.broadcast(told, 0)
    return bool(told)


def check(what: str, *, able: bool = False) -> None:
    """Refuse to do in several processes what only one can do.

    Raises:
        SettingsError: There are several, and this is not ``able`` to run in them.
    """
    if count() > 1 and not able:
        raise SettingsError(
            f"{what} runs in one process, and torchrun has started {count()}: leave torchrun out. Only bpfree train on "
            "a log of clicks runs in several."
        )


def strategy() -> Any:
    """Return how Lightning averages the processes' gradients."""
    from lightning.pytorch.strategies import DDPStrategy  # options import this module, and Lightning takes seconds

    # Found, not assumed: Shallow and models with a part that a rule does not train have weights without a gradient.
    return DDPStrategy(process_group_backend=dist.get_backend(), find_unused_parameters=True)


def gathered(tensor: Tensor) -> Tensor:
    """Return the rows of all processes' tensors, process by process; on the CPU if there are several."""
    if count() == 1:
        return tensor
    parts: list[Any] = [None] * count()
    dist.all_gather_object(parts, tensor.cpu())
    return torch.cat(parts)
