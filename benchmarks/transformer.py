"""What a training step of the papers' transformer costs by direct rules, relative to backpropagation.

6 blocks of width 512, 8 heads, 2,048 hidden units, dropout 0.1, 8 sequences of 128 tokens: the network of Launay et al.
2020, with their placements of taps and with ``local``. Each is timed in turns with a backpropagation twin of the same
attention.

    python benchmarks/transformer.py [--only "DFA, *" ...] [--vocabulary N] [--pairs N]
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import bpfree
from bpfree.lab.models import CausalTransformer
from bpfree.lab.models.transformer.placement import AttentionKind, Placement
from common import results, script
from common.subjects import Step
from common.timing import timed

RULES: dict[str, bpfree.Rule] = {
    "DFA": bpfree.DFA(feedback=bpfree.Feedback("launay2020-code")),
    "GrAPE": bpfree.GrAPE(),
    "FDFA": bpfree.FDFA(),
    "FDFA, every=4": bpfree.FDFA(every=4),
}
FORMS: tuple[tuple[Placement, AttentionKind], ...] = (
    *(("macro", "standard"), ("micro", "standard")),
    *(("local", "dense"), ("local", "random"), ("local", "fixed")),
)


@dataclass(frozen=True)
class Net:
    """The sizes of the network and of its batch."""

    blocks: int
    width: int
    heads: int
    hidden: int
    vocabulary: int
    tokens: int
    sequences: int

    @property
    def name(self) -> str:
        """How tables and files call it."""
        return f"{self.blocks} blocks of {self.width}, {self.sequences} x {self.tokens} of {self.vocabulary:,} tokens"

    def step(self, rule: bpfree.Rule, placement: Placement, attention: AttentionKind) -> Step:
        """Forward, loss and backward of one way to train it."""
        torch.manual_seed(0)
        heads = 4 if attention == "fixed" else self.heads
        model = CausalTransformer(
            (self.tokens,), self.vocabulary, self.blocks, self.width, heads, self.hidden, positions="sinusoidal",
            dropout=0.1, placement=placement, attention=attention, initialization="launay2020",
        )  # fmt: skip
        taps = list(CausalTransformer.suggested_taps(self.blocks, "post", placement, attention))
        text = torch.randint(0, self.vocabulary, (self.sequences, self.tokens + 1))
        attachment = bpfree.attach(
            model, rule, taps=taps, error_at=CausalTransformer.suggested_error_at, example_inputs=text[:, :-1]
        )

        def forward_backward() -> None:
            F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten()).backward()

        return Step(model, forward_backward, getattr(rule, "every", 1), attachment)


def rows_of(net: Net, only: list[str] | None, pairs: int) -> Iterator[results.Row]:
    """A row for each chosen rule and form, beside backpropagation with the same attention."""
    for placement, attention in FORMS:
        chosen = {f"{rule}, {placement}, {attention}": rule for rule in RULES}
        chosen = {name: rule for name, rule in chosen.items() if script.chosen(name, only)}
        if not chosen:
            continue
        reference = net.step(bpfree.BP(), placement, attention)
        for name, rule in chosen.items():
            step = net.step(RULES[rule], placement, attention)
            yield {
                "net": net.name,
                "subject": name,
                "reference": f"BP, {attention}",
                "time": timed(step, reference, pairs),
                "flops_ratio": step.flops() / reference.flops(),
                "peak_bytes": step.peak_bytes(),
                "peak_bytes_reference": reference.peak_bytes(),
                "tokens": net.sequences * net.tokens * step.period,
            }
            del step
            gc.collect()


HEADER = """\
| rule | beside | time ratio | quartiles | tokens a second | matrix work ratio | peak memory ratio |
| --- | --- | --- | --- | --- | --- | --- |"""


def line(row: results.Row) -> str:
    """One row of the printed table."""
    time, memory = row["time"], row["peak_bytes"] / row["peak_bytes_reference"]
    spread = f"{time['lower']:.3f} to {time['upper']:.3f}"
    speed = f"{row['tokens'] / time['subject_seconds']:,.0f}"
    numbers = f"{time['median']:.3f} | {spread} | {speed} | {row['flops_ratio']:.3f} | {memory:.3f}"
    return f"| {row['subject']} | {row['reference']} | {numbers} |"


def network(options: argparse.Namespace) -> Net:
    """The network of the command line."""
    return Net(*(getattr(options, name) for name in Net.__dataclass_fields__))


def main() -> None:
    """Measure, print the table, put the rows into the file."""
    script.keep_memory()
    parser = script.parser(__doc__, "transformer.json")
    sizes = {
        "blocks": 6, "width": 512, "heads": 8, "hidden": 2048, "vocabulary": 32_000, "tokens": 128, "sequences": 8,
    }  # fmt: skip
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"default: {size:,}")
    parser.add_argument("--pairs", type=int, default=16, help="pairs of steps a row (default: 16)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = script.run()
    print(HEADER)
    for found in rows_of(network(options), options.only, options.pairs):
        print(line(found), flush=True)
        results.write(options.out, run, [found])  # at once: a run that is cut short leaves what it has measured


if __name__ == "__main__":
    main()
