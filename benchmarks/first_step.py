"""What an attachment's own checks cost: the first training step beside a later one, in time and in memory.

For every subject a fresh model takes its first step once with the checks and once without (``verify=False``). Both draw
their feedback there; what the first takes longer is the checks. Memory is counted by torch's allocator, beside the
weights, the batch and the feedback, as in memory.py.

    python benchmarks/first_step.py [--nets 8x1024@256 cnn@64] [--only "FDFA*"] [--repeats 7]
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from dataclasses import replace
from statistics import median

import torch

import bpfree
from bpfree.lab.time_and_memory import seconds
from common import results, script
from common.nets import Net, net
from common.subjects import Step, Subject

SUBJECTS: dict[str, Subject] = {
    "DFA": Subject(bpfree.DFA()),
    "DRTP": Subject(bpfree.DRTP()),
    "streaming DFA": Subject(bpfree.DFA(), streaming=True),
    "window of 2": Subject(bpfree.DFA(), window=2),
    "FDFA": Subject(bpfree.FDFA()),
    "GrAPE": Subject(bpfree.GrAPE()),
    "streaming GrAPE": Subject(bpfree.GrAPE(), streaming=True),
    "FA": Subject(bpfree.FA()),
    "PEPITA": Subject(bpfree.PEPITA()),
    "ForwardGradient, activations": Subject(bpfree.ForwardGradient()),
    "ForwardGradient, weights": Subject(bpfree.ForwardGradient("weights")),
}
LATER = 5
"""The median of so many later steps is a step."""


def fresh(subject: Subject, on: Net) -> Step:
    """The step of a model that has taken none yet."""
    gc.collect()
    return replace(subject, begins_late=True).on(on)


def later_seconds(subject: Subject, on: Net) -> float:
    """Seconds of a later step."""
    step = fresh(subject, on)
    step()
    return median(seconds(step) for _ in range(LATER))


def memory_ratio(subject: Subject, on: Net) -> float:
    """The most bytes of a first step beside those of a later one, beside the feedback that it leaves."""
    step = fresh(subject, on)
    first = step.peak_bytes()
    kept = sum(tensor.nbytes for tensor in step.feedback())
    return (first - kept) / step.peak_bytes()


def measured(name: str, subject: Subject, on: Net, repeats: int) -> results.Row:
    """One row: the checks in steps, and the first step's memory beside a later one's."""
    unchecked = replace(subject, verify=False)
    memory = memory_ratio(subject, on)  # first: what the process does once, such as loading kernels, is not timed
    checks = [
        (seconds(fresh(subject, on)) - seconds(fresh(unchecked, on))) / later_seconds(subject, on)
        for _ in range(repeats)
    ]
    return {"net": on.name, "subject": name, "check_steps": median(checks), "memory_ratio": memory}


def rows(nets: list[Net], only: list[str] | None, repeats: int) -> Iterator[results.Row]:
    """A row for every network and subject."""
    for on in nets:
        for name, subject in SUBJECTS.items():
            if script.chosen(name, only):
                yield measured(name, subject, on, repeats)


def main() -> None:
    """Measure, print the table, put the rows into the file."""
    script.keep_memory()
    parser = script.parser(__doc__, "first_step.json")
    parser.add_argument("--nets", nargs="+", type=net, default=[net("8x1024@256"), net("cnn@64")])
    parser.add_argument("--repeats", type=int, default=7, help="fresh models a row (default: 7)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", bpfree.BpfreeWarning)
    run = script.run()
    print("| network | subject | checks, steps | memory of the first step / a step |\n| --- | --- | --- | --- |")
    for row in rows(options.nets, options.only, options.repeats):
        print(f"| {row['net']} | {row['subject']} | {row['check_steps']:.1f} | {row['memory_ratio']:.2f} |", flush=True)
        results.write(options.out, run, [row])


if __name__ == "__main__":
    main()
