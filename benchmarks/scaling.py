"""How a step's cost relative to backpropagation changes as depth, width, batch and number of classes grow.

One of them grows at a time, the others stay as in the base network. Every point is timed in pairs as in step.py, for
about as many seconds as asked for.

    python benchmarks/scaling.py [--base 8x512@256] [--axes depth width batch classes] [--only DFA] [--seconds 3]
"""

from __future__ import annotations

import gc
from dataclasses import asdict, replace

import torch

import bpfree
from common import results, script
from common.nets import MLP, net
from common.subjects import Step, Subject
from common.timing import pairs_within, timed

SUBJECTS: dict[str, Subject] = {
    "DFA": Subject(bpfree.DFA()),
    "FDFA, every=4": Subject(bpfree.FDFA(every=4)),
    "FA": Subject(bpfree.FA()),
    "streaming DFA": Subject(bpfree.DFA(), streaming=True),
}
AXES: dict[str, list[int]] = {
    "depth": [2, 4, 8, 16, 32, 64],
    "width": [64, 128, 256, 512, 1024, 2048],
    "batch": [16, 64, 256, 1024, 4096],
    "classes": [2, 10, 100, 1000, 10000],
}


def point(axis: str, one: MLP, only: list[str] | None, budget: float) -> list[results.Row]:
    """A row for each subject on one network."""
    reference = Subject(bpfree.BP()).on(one)
    chosen = {name: subject for name, subject in SUBJECTS.items() if script.chosen(name, only)}
    rows = [row(axis, one, name, subject.on(one), reference, budget) for name, subject in chosen.items()]
    gc.collect()
    return rows


def row(axis: str, one: MLP, name: str, step: Step, reference: Step, budget: float) -> results.Row:
    """One subject beside backpropagation."""
    time = timed(step, reference, pairs_within(step, reference, budget))
    peaks = {"peak_bytes": step.peak_bytes(), "peak_bytes_reference": reference.peak_bytes()}
    spread = f"{time['lower']:.3f} to {time['upper']:.3f}"
    memory = peaks["peak_bytes"] / peaks["peak_bytes_reference"]
    print(f"| {axis} | {one.name} | {name} | {time['median']:.3f} | {spread} | {memory:.3f} |", flush=True)
    return {"axis": axis, "net": one.name, **asdict(one), "subject": name, "reference": "BP", "time": time, **peaks}


HEADER = """\
| axis | network | subject | time / BP | quartiles | peak memory / BP |
| --- | --- | --- | --- | --- | --- |"""


def main() -> None:
    """Measure, print the table, put the rows into the file."""
    script.keep_memory()
    parser = script.parser(__doc__, "scaling.json")
    parser.add_argument("--base", type=net, default=net("8x512@256"), metavar="NET", help="default: 8x512@256")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), metavar="AXIS", help="what grows")
    parser.add_argument(
        "--sizes", nargs="+", type=int, metavar="N", help="the sizes on every axis in place of usual ones"
    )
    parser.add_argument("--seconds", type=float, default=2.5, help="time for the pairs of a row (default: 2.5)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(HEADER)
    for axis in options.axes:  # each is in the file before the next one begins
        nets = [replace(options.base, **{axis: size}) for size in options.sizes or AXES[axis]]
        rows = [row for one in nets for row in point(axis, one, options.only, options.seconds)]
        results.write(options.out, script.run(), rows)


if __name__ == "__main__":
    main()
