"""How a step's cost relative to backpropagation changes as depth, width, batch and number of classes grow.

One of them grows at a time, the others stay as in the base network. Every point is timed in pairs as in step.py, for
about as many seconds as asked for.

    python benchmarks/scaling.py [--base 8x512@256] [--axes depth width batch classes] [--only DFA] [--seconds 3]
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
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
    "depth": [2, 4, 8, 16, 32],
    "width": [64, 128, 256, 512, 1024],
    "batch": [16, 64, 256, 1024],
    "classes": [2, 10, 100, 1000, 10000],
}


def point(axis: str, one: MLP, only: list[str] | None, budget: float) -> Iterator[results.Row]:
    """A row for each subject on one network."""
    reference = Subject(bpfree.BP()).on(one)
    for name, subject in SUBJECTS.items():
        if script.chosen(name, only):
            yield row(axis, one, name, subject.on(one), reference, budget)
            gc.collect()


def row(axis: str, one: MLP, name: str, step: Step, reference: Step, budget: float) -> results.Row:
    """One subject beside backpropagation."""
    time = timed(step, reference, pairs_within(step, reference, budget))
    peaks = {"peak_bytes": step.peak_bytes(), "peak_bytes_reference": reference.peak_bytes()}
    return {"axis": axis, "net": one.name, **asdict(one), "subject": name, "reference": "BP", "time": time, **peaks}


HEADER = """\
| axis | network | subject | time / BP | quartiles | peak memory / BP |
| --- | --- | --- | --- | --- | --- |"""


def line(row: results.Row) -> str:
    """One row of the printed table."""
    time, memory = row["time"], row["peak_bytes"] / row["peak_bytes_reference"]
    spread = f"{time['lower']:.3f} to {time['upper']:.3f}"
    return f"| {row['axis']} | {row['net']} | {row['subject']} | {time['median']:.3f} | {spread} | {memory:.3f} |"


def main() -> None:
    """Measure, print the table, put the rows into the file."""
    script.keep_memory()
    parser = script.parser(__doc__, "scaling.json")
    parser.add_argument("--base", type=net, default=net("8x512@256"), metavar="NET", help="default: 8x512@256")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), metavar="AXIS", help="what grows")
    parser.add_argument(
        "--sizes", nargs="+", type=int, metavar="N", help="the sizes on every axis in place of usual ones"
    )
    parser.add_argument("--seconds", type=float, default=1.5, help="time for the pairs of a row (default: 1.5)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = script.run()
    print(HEADER)
    for axis in options.axes:
        for size in options.sizes or AXES[axis]:
            for found in point(axis, replace(options.base, **{axis: size}), options.only, options.seconds):
                print(line(found), flush=True)
                results.write(options.out, run, [found])  # at once: a run cut short leaves what it has measured


if __name__ == "__main__":
    main()
