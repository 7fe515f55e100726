"""A pipeline of two processes: errors go back, gradients do not, and the weights are those of one process.

python examples/pipeline.py
"""

import argparse
import copy
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage

import bpfree.pipeline
from bpfree.lab.data import load


def train_half(rank: int, meeting: str, model: nn.Sequential, batches: list[tuple[Tensor, Tensor]]) -> None:
    """In a process of its own: train the first or the second half of the model, whose weights both share."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    half = model[4:] if rank else model[:4]
    attachment = bpfree.pipeline.attach_stage(PipelineStage(half, rank, 2, torch.device("cpu")), bpfree.DFA())
    schedule = bpfree.pipeline.ScheduleSynchronous(attachment, 4, F.cross_entropy)
    optimizer = torch.optim.SGD(half.parameters(), lr=0.1, momentum=0.9)
    for x, y in batches:
        optimizer.zero_grad()
        schedule.step(target=y) if rank else schedule.step(x)
        optimizer.step()
    on, back = schedule.sent_activation_bytes / 2**20, schedule.sent_error_bytes / 2**20
    print(f"process {rank} has sent {on:.2f} MiB of activations and {back:.2f} MiB of errors", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one epoch in place of five")
    epochs, data = 1 if parser.parse_args().quick else 5, load("digits")
    x, y, test_x, test_y = data.train.x.flatten(1), data.train.y, data.evaluation.x.flatten(1), data.evaluation.y
    torch.manual_seed(0)
    batches = [(x[rows], y[rows]) for _ in range(epochs) for rows in torch.randperm(len(x)).split(80)]
    hidden = [part for width in (784, 256, 256) for part in (nn.Linear(width, 256), nn.Tanh())]
    two = nn.Sequential(*hidden, nn.Linear(256, 10)).share_memory()
    one, frozen = copy.deepcopy(two), copy.deepcopy(two)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(train_half, (f"{folder}/meeting", two, batches), nprocs=2)
    for model, rule in (one, bpfree.DFA()), (frozen, bpfree.Shallow()):
        bpfree.attach(model, rule)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for rows_x, rows_y in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(rows_x), rows_y).backward()
            optimizer.step()
    for name, model in {"two processes": two, "one process": one, "frozen control": frozen}.items():
        print(f"{name:14} {100 * (model(test_x).argmax(1) == test_y).float().mean():.1f} % of test digits")
    apart = max((a - b).abs().max().item() for a, b in zip(two.parameters(), one.parameters(), strict=True))
    print(f"largest difference of a weight between two processes and one: {apart:.1e}")
