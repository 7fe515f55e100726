"""What one training step takes in memory as the network gets deeper, and what that costs in time.

Memory is counted by torch's allocator, beside the weights and the batch. Time is measured at one depth, in pairs as in
step.py.

    python benchmarks/memory.py [--depths 8 16 32 64] [--time-depth 16] [--only "streaming *"] [--width N] [--batch N]
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import asdict

import torch

import bpfree
from common import results, script
from common.nets import MLP
from common.subjects import Subject, best_segments
from common.timing import timed

SUBJECTS: dict[str, Subject] = {
    "BP": Subject(bpfree.BP()),
    "BP, optimizer in backward": Subject(bpfree.BP(), in_backward=True),
    "DFA": Subject(bpfree.DFA()),
    "streaming DFA": Subject(bpfree.DFA(), streaming=True),
    "streaming DRTP": Subject(bpfree.DRTP(), streaming=True, targets_first=True),
    "streaming FDFA": Subject(bpfree.FDFA(), streaming=True),
    "streaming DFA, optimizer in backward": Subject(
        bpfree.DFA(), streaming=True, in_backward=True, reference="BP, optimizer in backward"
    ),
    "streaming DRTP, optimizer in backward": Subject(
        bpfree.DRTP(), streaming=True, targets_first=True, in_backward=True, reference="BP, optimizer in backward"
    ),
}
CHECKPOINTED = "BP, checkpointed"


def subjects(net: MLP) -> dict[str, Subject]:
    """Every subject on one network."""
    return SUBJECTS | {CHECKPOINTED: Subject(bpfree.BP(), segments=best_segments(net))}


def memories_of(net: MLP, only: list[str] | None) -> Iterator[results.Row]:
    """What a step of each chosen subject takes."""
    for name, subject in subjects(net).items():
        if script.chosen(name, only):
            step = subject.on(net)
            # First: what is made in a first step, such as feedback, is no part of the others.
            taken = {"gradient_bytes": step.gradient_bytes()}
            taken |= {"peak_bytes": step.peak_bytes(), "activation_bytes": step.activation_bytes()}
            yield {"net": net.name, **asdict(net), "subject": name, "segments": subject.segments or None, **taken}
            gc.collect()


def times_of(net: MLP, only: list[str] | None, pairs: int) -> Iterator[results.Row]:
    """How long the subjects' steps take beside their references', and beside checkpointed backpropagation."""
    found = subjects(net)
    beside = [(name, subject.reference) for name, subject in found.items() if name != subject.reference]
    beside += [(name, CHECKPOINTED) for name, subject in found.items() if subject.streaming and not subject.in_backward]
    beside = [(name, reference) for name, reference in beside if script.chosen(name, only)]
    references = {name: found[name].on(net) for name in sorted({reference for _, reference in beside})}
    for name, reference in beside:
        gc.collect()
        time = timed(found[name].on(net), references[reference], pairs, warmup=1)
        yield {"net": net.name, **asdict(net), "subject": name, "reference": reference, "time": time}


MEMORY_HEADER = """\
| network | subject | activations, MiB | gradients, MiB | peak, MiB |
| --- | --- | --- | --- | --- |"""
TIME_HEADER = """
| network | subject | beside | time ratio | quartiles |
| --- | --- | --- | --- | --- |"""


def memory_line(row: results.Row) -> str:
    """One row of the table of memory."""
    mebibytes = (f"{row[part] / 2**20:.1f}" for part in ("activation_bytes", "gradient_bytes", "peak_bytes"))
    return f"| {row['net']} | {row['subject']} | {' | '.join(mebibytes)} |"


def time_line(row: results.Row) -> str:
    """One row of the table of times."""
    time = row["time"]
    numbers = f"{time['median']:.3f} | {time['lower']:.3f} to {time['upper']:.3f}"
    return f"| {row['net']} | {row['subject']} | {row['reference']} | {numbers} |"


def main() -> None:
    """Measure, print the tables, put the rows into the file."""
    script.keep_memory()
    parser = script.parser(__doc__, "memory.json")
    parser.add_argument("--depths", nargs="*", type=int, default=[8, 16, 32, 64], help="where memory is counted")
    parser.add_argument("--time-depth", type=int, default=16, help="where time is measured (default: 16); 0 for not")
    parser.add_argument("--width", type=int, default=1024, help="features of a layer (default: 1024)")
    parser.add_argument("--batch", type=int, default=2048, help="samples of a batch (default: 2048)")
    parser.add_argument("--pairs", type=int, default=6, help="pairs of steps a row (default: 6)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    def of(depth: int) -> MLP:
        return MLP(depth, options.width, options.batch)

    run = script.run()
    print(MEMORY_HEADER)
    for net in map(of, options.depths):
        for row in memories_of(net, options.only):
            print(memory_line(row), flush=True)
            results.write(options.out, run, [row])  # at once: a run that is cut short leaves what it has measured
    if options.time_depth:
        print(TIME_HEADER)
        for row in times_of(of(options.time_depth), options.only, options.pairs):
            print(time_line(row), flush=True)
            results.write(options.out, run, [row])


if __name__ == "__main__":
    main()
