"""Processes for tests: a few ranks on loopback, gloo, one thread each."""

import os
import socket
import traceback

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_on_two_ranks(function, *args):
    """Run ``function(rank, *args)`` on two processes; return what each put out, by rank."""
    return run_on_ranks(2, function, *args)


def run_on_ranks(count, function, *args):
    """Run ``function(rank, *args)`` on ``count`` processes; return what each put out, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=_rank, args=(rank, count, port, results, function, args)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(results.get(timeout=120) for _ in processes)
    finally:
        for process in processes:
            process.join(timeout=20)
            process.kill()
    for rank, (error, _) in sorted(found.items()):
        assert error is None, f"rank {rank}:\n{error}"
    return [found[rank][1] for rank in range(count)]


def _rank(rank, count, port, results, function, args):
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
