"""What one training step costs by each learning rule, relative to backpropagation.

A step is: drop the old gradients, forward, loss, backward (no optimizer: it costs the same for every rule). Each
subject is timed in turns with a backpropagation twin in one process, and the ratio is taken within each pair.
Where the package biotorch can be imported, its rules are measured in the same table.

    python benchmarks/step.py [--nets 16x2048@256 cnn@64 ...] [--only DFA "compiled *" ...] [--pairs N]
"""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

import bpfree
from common import results, script
from common.nets import MLP, Net, net
from common.subjects import Step, Subject, best_segments
from common.timing import timed

CHANNELS = bpfree.LMS(scale=1.0, every=4, perturbations="hadamard", feedback=bpfree.Feedback(shared=False, modes=1))
"""Feedback of one number a channel, which learns in every fourth step."""
DEEPER: dict[str, Subject] = {
    f"{name}, {how}={depth}": Subject(rule, **{how: depth})
    for name, rule in {"LMS, channels, every=4": CHANNELS, "FDFA, every=16": bpfree.FDFA(every=16)}.items()
    for how in ("alternate", "window")
    for depth in (2, 3, 4)
}
"""Backward passes of several segments between taps, by cuts that alternate and by windows."""

SUBJECTS: dict[str, Subject] = {
    "DFA": Subject(bpfree.DFA()),
    "DFA, rank=64": Subject(bpfree.DFA(feedback=bpfree.Feedback(rank=64))),
    "DRTP": Subject(bpfree.DRTP()),
    "GrAPE": Subject(bpfree.GrAPE()),
    "GrAPE, every=4": Subject(bpfree.GrAPE(every=4)),
    "FDFA": Subject(bpfree.FDFA()),
    "FDFA, every=4": Subject(bpfree.FDFA(every=4)),
    "FDFA, alternate=2": Subject(bpfree.FDFA(), alternate=2),
    "FDFA, rows=.25": Subject(bpfree.FDFA(rows=0.25)),
    "FDFA, rows=.125": Subject(bpfree.FDFA(rows=0.125)),
    "FDFA, rows=.125, alternate=2": Subject(bpfree.FDFA(rows=0.125), alternate=2),
    "FDFA, every=8": Subject(bpfree.FDFA(every=8)),
    "FDFA, every=8, alternate=2": Subject(bpfree.FDFA(every=8), alternate=2),
    "FDFA, every=16": Subject(bpfree.FDFA(every=16)),
    "LMS": Subject(bpfree.LMS()),
    "LMS, channels, every=4": Subject(CHANNELS),
    **DEEPER,
    "LMS, channels, every=16, alternate=2": Subject(replace(CHANNELS, every=16), alternate=2),
    "LMS, channels, rows=.25, every=2": Subject(replace(CHANNELS, rows=0.25, every=2)),
    "DKP": Subject(bpfree.DKP()),
    "DFA, alternate=2": Subject(bpfree.DFA(), alternate=2),
    "DFA, window=2": Subject(bpfree.DFA(), window=2),
    "FA": Subject(bpfree.FA()),
    "uSF": Subject(bpfree.SignSymmetry("uniform")),
    "KolenPollack": Subject(bpfree.KolenPollack()),
    "WeightMirror": Subject(bpfree.WeightMirror()),
    "PEPITA": Subject(bpfree.PEPITA()),
    "ForwardGradient weights": Subject(bpfree.ForwardGradient("weights")),
    "ForwardGradient activations": Subject(bpfree.ForwardGradient("activations")),
    "Shallow": Subject(bpfree.Shallow()),
    "streaming DFA": Subject(bpfree.DFA(), streaming=True),
    "streaming DRTP": Subject(bpfree.DRTP(), streaming=True, targets_first=True),
    "compiled BP": Subject(bpfree.BP(), compiled=True),
    "compiled DFA": Subject(bpfree.DFA(), compiled=True, reference="compiled BP"),
    "bf16 BP": Subject(bpfree.BP(), bf16=True),
    "bf16 DFA": Subject(bpfree.DFA(), bf16=True),
}
CHECKPOINTED = "BP, checkpointed"
BIOTORCH = {"biotorch DFA": "dfa", "biotorch FA": "fa"}
NETS = ["8x1024@256", "16x1024@128", "16x2048@256", "8x256@64", "64x256@64", "cnn@64", "12blocks@16"]


@dataclass(frozen=True)
class BioTorch:
    """A rule of the package biotorch, in a step as its users write it; its DFA evaluates the loss twice."""

    mode: str
    compiled: bool = False
    reference: str = "BP"

    def on(self, net: Net) -> Step:
        """The step on one network."""
        from biotorch.module.biomodule import BioModule

        model, (x, y) = BioModule(net.build(), mode=self.mode, output_dim=net.classes), net.data()
        loss = nn.CrossEntropyLoss()
        return Step(model, lambda: loss(model(x, y, loss) if self.mode == "dfa" else model(x), y).backward())


def subjects(net: Net) -> Mapping[str, Subject | BioTorch]:
    """What can be measured on one network."""
    found: dict[str, Subject | BioTorch] = dict(SUBJECTS)
    if isinstance(net, MLP):
        found[CHECKPOINTED] = Subject(bpfree.BP(), segments=best_segments(net))
        if importlib.util.find_spec("biotorch"):
            found |= {name: BioTorch(mode) for name, mode in BIOTORCH.items()}
    return found


def measure(net: Net, only: list[str] | None, pairs: int) -> Iterator[results.Row]:
    """A row for each chosen subject on one network."""
    found = subjects(net)
    references: dict[str, Step] = {}
    for name, subject in found.items():
        if not script.chosen(name, only):
            continue
        if subject.reference not in references:
            references[subject.reference] = (SUBJECTS | {"BP": Subject(bpfree.BP())})[subject.reference].on(net)
        yield row(net, name, subject, references[subject.reference], pairs)
        gc.collect()


def row(net: Net, name: str, subject: Subject | BioTorch, reference: Step, pairs: int) -> results.Row:
    """One subject beside its reference."""
    step = subject.on(net)
    found: results.Row = {"net": net.name, "subject": name, "reference": subject.reference}
    if isinstance(subject, Subject) and subject.segments:
        found["segments"] = subject.segments
    found["time"] = timed(step, reference, pairs)
    # A compiled model would be traced anew to count them: they are those of the same rule without torch.compile.
    found["flops_ratio"] = None if subject.compiled else step.flops() / reference.flops()
    if not subject.compiled:
        found |= {"python_calls": step.python_calls(), "python_calls_reference": reference.python_calls()}
    return found | {"peak_bytes": step.peak_bytes(), "peak_bytes_reference": reference.peak_bytes()}


HEADER = """\
| network | rule | beside | time ratio | quartiles | matrix work ratio | peak memory ratio |
| --- | --- | --- | --- | --- | --- | --- |"""


def line(row: dict[str, Any]) -> str:
    """One row of the printed table."""
    time, memory = row["time"], row["peak_bytes"] / row["peak_bytes_reference"]
    work = "-" if row["flops_ratio"] is None else f"{row['flops_ratio']:.3f}"
    spread = f"{time['lower']:.3f} to {time['upper']:.3f}"
    numbers = f"{time['median']:.3f} | {spread} | {work} | {memory:.3f}"
    return f"| {row['net']} | {row['subject']} | {row['reference']} | {numbers} |"


def main() -> None:
    """Measure, print the table, put the rows into the file."""
    script.keep_memory()
    parser = script.parser(__doc__, "step.json")
    parser.add_argument("--nets", nargs="+", type=net, default=[net(text) for text in NETS], metavar="NET",
                        help=f"depth x width @ batch, cnn@, blocks@ or gpt2@ (default: {' '.join(NETS)})")  # fmt: skip
    parser.add_argument("--pairs", type=int, default=16, help="pairs of steps a row (default: 16)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if script.bf16_instructions() is False:
        print("This processor has no bfloat16 instructions: the bf16 rows show what emulating them costs.")
    if not importlib.util.find_spec("biotorch"):
        print("biotorch: not measured, it is not installed here (benchmarks/README.md says how)")
    print(HEADER)
    run = script.run()
    for one in options.nets:
        for found in measure(one, options.only, options.pairs):
            print(line(found), flush=True)
            results.write(options.out, run, [found])  # at once: a run that is cut short leaves what it has measured


if __name__ == "__main__":
    main()
