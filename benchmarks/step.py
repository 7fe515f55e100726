"""What one training step costs by each learning rule, relative to backpropagation.

A step is: drop the old gradients, forward, loss, backward (no optimizer: it costs the same for every rule). Each
subject is timed in turns with a backpropagation twin in one process, and the ratio is taken within each pair.
Where the package biotorch can be imported, its rules are measured in the same table.

    python benchmarks/step.py [--quick] [--pairs N] [--out FILE]
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import bpfree
from bpfree.lab import environment
from bpfree.lab.files import write_json
from bpfree.lab.measure import paired_ratio, peak_bytes
from bpfree.lab.models.cnn import CNN

CLASSES = 10
RULES: dict[str, bpfree.Rule] = {
    "DFA": bpfree.DFA(),
    "DRTP": bpfree.DRTP(),
    "GrAPE": bpfree.GrAPE(),
    "GrAPE, every=4": bpfree.GrAPE(every=4),
    "FDFA": bpfree.FDFA(),
    "FDFA, every=4": bpfree.FDFA(every=4),
    "LMS": bpfree.LMS(),
    "DKP": bpfree.DKP(),
    "DFA, window=2": bpfree.DFA(),
    "FA": bpfree.FA(),
    "uSF": bpfree.SignSymmetry("uniform"),
    "KolenPollack": bpfree.KolenPollack(),
    "WeightMirror": bpfree.WeightMirror(),
    "PEPITA": bpfree.PEPITA(),
    "ForwardGradient weights": bpfree.ForwardGradient("weights"),
    "ForwardGradient activations": bpfree.ForwardGradient("activations"),
    "Shallow": bpfree.Shallow(),
}
WINDOWS = {"DFA, window=2": 2}
BIOTORCH = {"biotorch DFA": "dfa", "biotorch FA": "fa"}


@dataclass(frozen=True)
class Subject:
    """A model and what one training step of it does."""

    model: nn.Module
    forward_backward: Callable[[], object]
    period: int = 1
    """After how many steps the same work comes again."""

    def step(self) -> None:
        """Drop the old gradients, forward, loss, backward."""
        self.model.zero_grad(set_to_none=True)
        self.forward_backward()

    def steps(self, count: int) -> None:
        """Several steps."""
        for _ in range(count):
            self.step()

    def peak_bytes(self) -> int:
        """The most memory a step takes, gradients included; those of the step before are gone by then."""
        return max(self._peak_bytes() for _ in range(self.period))

    def _peak_bytes(self) -> int:
        self.model.zero_grad(set_to_none=True)
        return peak_bytes(self.forward_backward)

    def flops(self) -> float:
        """Operations of the matrix products and convolutions of one step."""
        with FlopCounterMode(display=False) as counter:
            self.steps(self.period)
        return counter.get_total_flops() / self.period


@dataclass(frozen=True)
class Shape:
    """One network and batch."""

    name: str
    build: Callable[[], nn.Module]
    batch: tuple[int, ...]


def mlp(depth: int, width: int) -> nn.Sequential:
    """``depth`` blocks of Linear and tanh of one width, and a linear output."""
    blocks = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(*blocks, nn.Linear(width, CLASSES))


SHAPES = [
    Shape("8 x 1024, batch 256", lambda: mlp(8, 1024), (256, 1024)),
    Shape("16 x 1024, batch 128", lambda: mlp(16, 1024), (128, 1024)),
    Shape("8 x 256, batch 64", lambda: mlp(8, 256), (64, 256)),
    Shape("64 x 256, batch 64", lambda: mlp(64, 256), (64, 256)),
    Shape("3 conv (32-64-64) + 128, 3 x 32 x 32, batch 64", lambda: CNN((3, 32, 32), CLASSES), (64, 3, 32, 32)),
]


def data(shape: Shape) -> tuple[Tensor, Tensor]:
    """One batch, the same for every subject."""
    torch.manual_seed(1)
    return torch.randn(shape.batch), torch.randint(0, CLASSES, (shape.batch[0],))


def new_model(shape: Shape) -> nn.Module:
    """The network with the same weights for every subject."""
    torch.manual_seed(0)
    return shape.build()


def subject(shape: Shape, rule: bpfree.Rule, window: int = 1) -> Subject:
    """The network with ``rule`` attached."""
    model, (x, y) = new_model(shape), data(shape)
    attachment = bpfree.attach(model, rule, window=window, example_inputs=x)

    def forward_backward() -> None:
        attachment.targets(y)
        F.cross_entropy(model(x), y).backward()

    return Subject(model, forward_backward, getattr(rule, "every", 1))


def biotorch_subject(shape: Shape, mode: str) -> Subject:
    """A step as biotorch's users write it; its DFA evaluates the loss twice."""
    from biotorch.module.biomodule import BioModule

    model, (x, y) = BioModule(new_model(shape), mode=mode, output_dim=CLASSES), data(shape)
    loss = nn.CrossEntropyLoss()
    return Subject(model, lambda: loss(model(x, y, loss) if mode == "dfa" else model(x), y).backward())


def subjects(shape: Shape) -> dict[str, Subject]:
    """Every rule on one shape."""
    found = {name: subject(shape, rule, WINDOWS.get(name, 1)) for name, rule in RULES.items()}
    if importlib.util.find_spec("biotorch") and len(shape.batch) == 2:
        found |= {name: biotorch_subject(shape, mode) for name, mode in BIOTORCH.items()}
    return found


def measure(shape: Shape, pairs: int) -> list[dict[str, Any]]:
    """A row for each subject on one shape."""
    reference = subject(shape, bpfree.BP())
    rows = []
    for name, one in subjects(shape).items():
        timed, beside = partial(one.steps, one.period), partial(reference.steps, one.period)
        ratio = paired_ratio(timed, beside, repeats=pairs, warmup=3)
        row = {"shape": shape.name, "subject": name, "time": asdict(ratio)}
        row |= {"flops_ratio": one.flops() / reference.flops()}
        row |= {"peak_bytes": one.peak_bytes(), "peak_bytes_bp": reference.peak_bytes()}
        rows.append(row)
        print(line(row), flush=True)
    gc.collect()
    return rows


HEADER = """\
| network | rule | time / BP | quartiles | matrix work / BP | peak memory / BP |
| --- | --- | --- | --- | --- | --- |"""


def line(row: dict[str, Any]) -> str:
    """One row of the printed table."""
    time, memory = row["time"], row["peak_bytes"] / row["peak_bytes_bp"]
    spread = f"{time['lower']:.3f} to {time['upper']:.3f}"
    numbers = f"{time['median']:.3f} | {spread} | {row['flops_ratio']:.3f} | {memory:.3f}"
    return f"| {row['shape']} | {row['subject']} | {numbers} |"


# By default glibc hands freed gradients back to the system and asks for them again in every step. Which rule's step
# pays for the page faults depends on the layout of the heap: it moved ratios by .1 either way from run to run.
KEEP_MEMORY = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_MMAP_THRESHOLD_": str(2**36),
    "MALLOC_TRIM_THRESHOLD_": str(2**36),
    "MALLOC_TOP_PAD_": str(2**30),
}


def keep_memory() -> None:
    """Start again with the environment above, which is read when a process begins."""
    if any(os.environ.get(name) is None for name in KEEP_MEMORY):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**KEEP_MEMORY, **os.environ})


def main() -> None:
    """Measure, print the table, write the JSON."""
    keep_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60, help="pairs of steps a row (default: 60)")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads (default: 2)")
    parser.add_argument("--quick", action="store_true", help="two pairs on the smallest network: does it run?")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "step.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shapes, pairs = (SHAPES[2:3], 2) if options.quick else (SHAPES, options.pairs)
    print(HEADER)
    rows = [row for shape in shapes for row in measure(shape, pairs)]
    if not importlib.util.find_spec("biotorch"):
        print("biotorch: not measured, it is not installed here (benchmarks/README.md says how)")
    command = " ".join(["python benchmarks/step.py", *sys.argv[1:]])
    memory = {name: os.environ[name] for name in KEEP_MEMORY}
    write_json(options.out, {"command": command, "environment": environment.describe() | memory, "rows": rows})


if __name__ == "__main__":
    main()
