"""Processes for tests: a few ranks on loopback, gloo, one thread each."""

from __future__ import annotations

import fcntl
import os
import pickle
import queue
import socket
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import pytest
import torch
import torch.distributed as dist

from support.copies import copies
from support.one_fork import FORK

Made = TypeVar("Made")

_PATIENCE = 600
"""The most seconds that processes may take: far more than they need, for a machine that is busy."""


def run_on_two_ranks(function: Callable[..., Any], *args: Any) -> list[Any]:
    """Run ``function(rank, *args)`` on two processes; return what each put out, by rank."""
    return run_on_ranks(2, function, *args)


def run_on_ranks(count: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Run ``function(rank, *args)`` on ``count`` processes; return what each put out, by rank."""
    port = free_port()
    context = copies()
    results = context.Queue()
    processes = [
        context.Process(target=_rank, args=(rank, count, port, results, function, args)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(_next(results, processes) for _ in processes)
    finally:
        for process in processes:
            process.join(timeout=60)
            process.kill()
    for rank, (error, _) in sorted(found.items()):
        assert error is None, f"rank {rank}:\n{error}"
    return [found[rank][1] for rank in range(count)]


def free_port() -> int:
    """Return a port of this machine that nothing uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def once_per_run(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[], Made]) -> Made:
    """Return what ``make()`` returns, made by one of pytest's processes for all of them."""
    if FORK not in os.environ:
        return make()
    place = tmp_path_factory.getbasetemp().parent / f"{name}.pickle"
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            place.write_bytes(pickle.dumps(make()))
    made: Made = pickle.loads(place.read_bytes())
    return made


def _next(results: Any, processes: Sequence[BaseProcess]) -> Any:
    """Return what the next process puts out; an error as soon as one has died without a word."""
    for _ in range(_PATIENCE):
        died = [rank for rank, process in enumerate(processes) if process.exitcode not in (None, 0)]
        try:
            return results.get(timeout=1)
        except queue.Empty:
            assert not died, f"rank {died[0]} ended with exit code {processes[died[0]].exitcode}"
    raise TimeoutError(f"the processes put out nothing for {_PATIENCE} seconds")


def _rank(rank: int, count: int, port: int, results: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", rank=rank, world_size=count)
        value = function(rank, *args)
        dist.destroy_process_group()
        # Numpy arrays travel by value; a tensor would need this process to live on.
        results.put((rank, (None, value)))
    except Exception:
        results.put((rank, (traceback.format_exc(), None)))
