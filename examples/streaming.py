"""Streaming, on Linux: a network that backpropagation cannot fit into memory learns by DFA that stores no graph."""

import argparse
import ctypes
import multiprocessing
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree.lab.data import load

try:
    import resource
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: this example limits the memory of its processes, on Linux alone") from error


def memory(kind: str) -> float:
    """Return this process's memory in MiB: VmSize is what it asked for, VmRSS what it uses, VmHWM the most of that."""
    return int(Path("/proc/self/status").read_text().split(f"{kind}:")[1].split()[0]) / 1024


def train(way: str, room: int | None) -> None:
    """In a process of its own: learn, with ``room`` MiB more than libraries, data, weights and gradients take."""
    bpfree.attach(model, bpfree.BP() if way == "backpropagation" else bpfree.DFA(), streaming=way == "streamed DFA")
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    F.cross_entropy(model(x[:8]), y[:8]).backward()  # from here on, gradients are in memory
    before = memory("VmRSS")
    if room:
        resource.setrlimit(resource.RLIMIT_AS, (int(memory("VmSize") + room) * 2**20,) * 2)
    try:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=False)
            losses.append(F.cross_entropy(model(x), y))
            losses[-1].backward()
            optimizer.step()
        outcome = f"loss {losses[0]:.2f} to {losses[-1]:.2f}, activations took {memory('VmHWM') - before:.0f} MiB"
    except RuntimeError as error:
        outcome = f"fails: {str(error).splitlines()[0].split('DefaultCPUAllocator: ')[-1]}"
    print(f"{way:15} with {f'{room} MiB' if room else 'no limit':8}: {outcome}", flush=True)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--quick", action="store_true", help="12 layers and 3 steps in place of 64 and 20")
depth, steps = (12, 3) if parser.parse_args().quick else (64, 20)
torch.manual_seed(0), torch.set_num_threads(1)  # a process with several threads cannot be copied safely
data = load("digits")
x, y = data.train.x.flatten(1), data.train.y  # 4,000 digits: an activation of 256 features takes 4 MiB
hidden = [part for width in [784] + [256] * (depth - 1) for part in (nn.Linear(width, 256), nn.Tanh())]
for layer in hidden[::2]:
    nn.init.xavier_normal_(layer.weight)
model = nn.Sequential(*hidden, nn.Linear(256, 10))
ctypes.CDLL(None).mallopt(-3, 2**20)  # M_MMAP_THRESHOLD: freed blocks go back to the system at once
for way, room in [("backpropagation", None), ("backpropagation", 40), ("DFA", 40), ("streamed DFA", 40)]:
    process = multiprocessing.get_context("fork").Process(target=train, args=(way, room))  # with a copy of the model
    process.start(), process.join()
