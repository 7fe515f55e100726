"""What a pipeline of two processes gains when no gradient has to come back through it.

Two gloo processes with one thread each hold half of a network. In both, GPipe and 1F1B of torch.distributed.pipelining
train by backpropagation and bpfree's two schedules by direct rules, block by block in turns; an SGD step belongs to
every batch. A ratio is taken within each round. Beside it stands the simulator's answer for the same stages from their
measured times, and its answer for eight stages.

    python benchmarks/pipeline.py [--nets mlp transformer ...] [--only DFA ...] [--rounds N]
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

import bpfree
from bpfree import pipeline
from bpfree.lab.models.transformer import CausalTransformer
from common import results, script

MICRO_BATCHES = 4
LEARNING_RATE = 1e-4
CHARACTERS = 96
STEPS = 3
"""Batches in a block: long enough that starting and ending it together costs little."""
REFERENCES = ("GPipe-BP", "1F1B-BP")
SCHEDULES = ("synchronous", "asynchronous")


@dataclass(frozen=True)
class Ours:
    """A rule, and the arguments of attach_stage beside it."""

    rule: bpfree.Rule
    options: dict[str, Any] = field(default_factory=dict)


RULES = {
    "DFA": Ours(bpfree.DFA()),
    "FDFA, alternate=2": Ours(bpfree.FDFA(), {"alternate": 2}),
    "FDFA, rows=.125, alternate=2": Ours(bpfree.FDFA(rows=0.125), {"alternate": 2}),
    # One estimating pass a batch, as one process has it.
    "FDFA, rows=.125, every=4, alternate=2": Ours(bpfree.FDFA(rows=0.125, every=MICRO_BATCHES), {"alternate": 2}),
}


# -- the networks, in parts ----------------------------------------------------------------------------------------


class Transformer(nn.Module):
    """Some blocks of a causal transformer, under their names in the whole, with what comes before and behind them."""

    def __init__(self, whole: CausalTransformer, first: int, last: int) -> None:
        super().__init__()
        blocks = range(len(whole.blocks))[first:last]
        self.blocks = nn.ModuleDict({str(number): whole.blocks[number] for number in blocks})
        if first == 0:
            self.tokens, self.positions = whole.tokens, whole.positions
        if last == len(whole.blocks):
            self.below_head, self.head = whole.below_head, whole.head
        self.first, self.last = first == 0, last == len(whole.blocks)

    def forward(self, h: Tensor) -> Tensor:
        """Tokens ``(N, T)`` or the stream ``(N, T, d)`` to the stream or logits ``(N, T, classes)``."""
        if self.first:
            h = self.tokens(h) + self.positions(torch.arange(h.shape[1]))
        for block in self.blocks.values():
            h = block(h)
        return self.head(self.below_head(h)) if self.last else h


@dataclass(frozen=True)
class Net:
    """A network to be split, and its batch.

    Attributes:
        name: How tables and files call it.
        part: Builds part ``s`` of ``S``.
        inputs: One batch of inputs.
        targets: And of class numbers.
        width: The shape of what one sample is between two stages.
        error: The shape of one sample's error.
        taps: Where feedback enters.
    """

    name: str
    part: Callable[[int, int], nn.Module]
    inputs: Callable[[], Tensor]
    targets: Callable[[], Tensor]
    width: tuple[int, ...]
    error: tuple[int, ...]
    taps: Any = None


def mlp(batch: int = 1024, width: int = 1024, classes: int = 10) -> Net:
    """Eight blocks of Linear and tanh."""

    def part(s: int, S: int) -> nn.Module:
        torch.manual_seed(0)
        layers = [one for _ in range(8) for one in (nn.Linear(width, width), nn.Tanh())]
        whole = nn.Sequential(*layers, nn.Linear(width, classes))
        return whole[16 * s // S : 16 * (s + 1) // S if s < S - 1 else None]

    def inputs() -> Tensor:
        return torch.randn(batch, width, generator=torch.Generator().manual_seed(1))

    return Net(
        f"8 x {width} MLP, batch {batch}", part, inputs, partial(_classes, classes, (batch,)), (width,), (classes,)
    )


def transformer(label: str, taps: list[str], d: int = 512, batch: int = 8, context: int = 128) -> Net:
    """Four blocks of a causal transformer (post-norm) over characters; the error is taken at its output."""

    def part(s: int, S: int) -> nn.Module:
        torch.manual_seed(0)
        whole = CausalTransformer((context,), CHARACTERS, blocks=max(4, S), width=d, heads=4, hidden=4 * d)
        count = len(whole.blocks)
        return Transformer(whole, count * s // S, count * (s + 1) // S)

    name = f"4 transformer blocks, d {d}, batch {batch} x {context}, taps {label}"
    tokens = partial(_classes, CHARACTERS, (batch, context))
    return Net(name, part, tokens, tokens, (context, d), (context, CHARACTERS), taps)


def _classes(count: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(0, count, shape, generator=torch.Generator().manual_seed(2))


BLOCK_TAPS = ["blocks.*.tap"]
LAYER_TAPS = [*BLOCK_TAPS, "blocks.*.norm1", "blocks.*.feed_forward.1", "blocks.*.attention.into"]
NETS: dict[str, Callable[[], Net]] = {
    "mlp": mlp,
    "mlp-wide": partial(mlp, 4096, 4096),
    "transformer": partial(transformer, "after every layer", LAYER_TAPS),
    "transformer-blocks": partial(transformer, "after every block", BLOCK_TAPS),
}

PAPER_ONLY = "mlp-wide"
"""Too large for many batches on two threads: it is measured stage by stage, for the simulator."""


def loss(output: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy over samples or tokens."""
    return F.cross_entropy(output.flatten(0, -2), targets.flatten())


# -- one process of two --------------------------------------------------------------------------------------------


class Stage(PipelineStage):
    """A stage that counts what it sends."""

    activation_bytes = gradient_bytes = 0

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """What goes to the next stage."""
        ops = super().get_fwd_send_ops(fwd_chunk_id)
        self.activation_bytes += sum(op.tensor.nbytes for op in ops)
        return ops

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """What goes back to the one before."""
        ops = super().get_bwd_send_ops(bwd_chunk_id)
        self.gradient_bytes += sum(op.tensor.nbytes for op in ops)
        return ops


@dataclass
class Subject:
    """One way to train this process's stage."""

    stage: Stage
    step: Callable[[], object]
    sent_back: Callable[[], dict[str, int]] = lambda: {"errors": 0, "estimates": 0}
    steps: int = 0

    def block(self) -> float:
        """Seconds from a common start of all processes to their common end, over a few batches."""
        dist.barrier()
        start = time.perf_counter()
        for _ in range(STEPS):
            self.step()
        dist.barrier()
        self.steps += STEPS
        return time.perf_counter() - start

    def sent(self) -> dict[str, float]:
        """Bytes a batch."""
        counts = {"activations": self.stage.activation_bytes, "gradients": self.stage.gradient_bytes}
        return {name: count / self.steps for name, count in (counts | self.sent_back()).items()}


def subject(name: str, net: Net, rank: int) -> Subject:
    """One of ``REFERENCES``, or a schedule and the name of a rule of ``RULES``."""
    module = net.part(rank, 2)
    stage = Stage(module, rank, 2, torch.device("cpu"))
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
    given = {"target": net.targets()} if stage.is_last else {}
    inputs = (net.inputs(),) if stage.is_first else ()
    if name in REFERENCES:
        schedule = (ScheduleGPipe if name == "GPipe-BP" else Schedule1F1B)(stage, MICRO_BATCHES, loss)
        return Subject(stage, partial(_step, schedule, inputs, given, optimizer))
    kind, _, rule = name.partition(" ")
    ours = RULES[rule]
    attachment = pipeline.attach_stage(stage, ours.rule, taps=net.taps, **ours.options)
    if kind == "synchronous":
        schedule = pipeline.ScheduleSynchronous(attachment, MICRO_BATCHES, loss)
        step = partial(_step, schedule, inputs, given, optimizer)
    else:
        schedule = pipeline.ScheduleAsynchronous(attachment, MICRO_BATCHES, loss, optimizer=optimizer)
        step = partial(_step, schedule, inputs, given, None)

    def sent_back() -> dict[str, int]:
        return {"errors": schedule.sent_error_bytes, "estimates": schedule.sent_estimate_bytes}

    return Subject(stage, step, sent_back)


def _step(schedule: Any, inputs: tuple[Tensor, ...], given: dict[str, Tensor], optimizer: Any) -> None:
    """Learn from one batch; without ``optimizer`` the schedule has its own."""
    schedule.step(*inputs, **given, return_outputs=False)
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()


def process(rank: int, port: int, names: list[str], blocks: list[str], rounds: int, answers: Any) -> None:
    """Measure every net; rank 0 puts the answers out."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for name in names:
        net = NETS[name]()
        subjects = {name: subject(name, net, rank) for name in blocks}
        for one in subjects.values():
            one.block()
        times: dict[str, list[float]] = {name: [] for name in blocks}
        for number in range(rounds):
            turn = number % len(blocks)
            for name in (*blocks[turn:], *blocks[:turn]):
                times[name].append(subjects[name].block() / STEPS)
        sent: list[Any] = [None, None]
        dist.all_gather_object(sent, {name: one.sent() for name, one in subjects.items()})
        if rank == 0:
            answers.put((times, sent))
    dist.destroy_process_group()


def on_two_processes(names: list[str], rules: list[str], rounds: int) -> list[Any]:
    """Times and bytes of every net."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    answers = context.Queue()
    blocks = [*REFERENCES, *(f"{schedule} {rule}" for rule in rules for schedule in SCHEDULES)]
    arguments = port, names, blocks, rounds, answers
    processes = [context.Process(target=process, args=(rank, *arguments)) for rank in range(2)]
    for one in processes:
        one.start()
    measured = [answers.get() for _ in names]
    for one in processes:
        one.join()
    return measured


# -- what comes of it ----------------------------------------------------------------------------------------------


def rows(
    net: Net, rule: str, times: dict[str, list[float]], sent: list[dict[str, dict[str, float]]]
) -> list[results.Row]:
    """A row for each of our schedules by one rule beside each of backpropagation's."""
    paper = {one.schedule: one.time for one in on_paper(net, RULES[rule], 2, MICRO_BATCHES)}
    found = []
    for kind in SCHEDULES:
        subject, schedule = f"{kind} {rule}", f"direct, {kind}"
        for reference in REFERENCES:
            ratios = [theirs / ours for theirs, ours in zip(times[reference], times[subject], strict=True)]
            lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
            found.append(
                {
                    "axis": "2 processes",
                    "net": net.name,
                    "subject": subject,
                    "reference": reference,
                    "throughput": {"median": median, "lower": lower, "upper": upper, "rounds": len(ratios)},
                    "seconds": {name: statistics.median(times[name]) for name in (subject, reference)},
                    "bytes": {name: _together(sent, name) for name in (subject, reference)},
                    "simulated": {
                        "throughput": paper[reference[:-3]] / paper[schedule],
                        "seconds": {subject: paper[schedule], reference: paper[reference[:-3]]},
                    },
                }
            )
    return found


def _together(sent: list[dict[str, dict[str, float]]], name: str) -> dict[str, float]:
    return {kind: sum(of_stage[name][kind] for of_stage in sent) for kind in sent[0][name]}


def on_paper(net: Net, ours: Ours, S: int, M: int, visits: int = 5) -> list[pipeline.Outcome]:
    """What the simulator says of ``S`` stages, each measured in this process.

    They are visited in turns: what disturbs the machine for a while must not make one stage the slowest.
    """
    parts = [net.part(s, S) for s in range(S)]
    stage_times(net, ours, parts[0], 0, S, M)  # a process's first passes are slow
    times = [[asdict(stage_times(net, ours, part, s, S, M)) for s, part in enumerate(parts)] for _ in range(visits)]
    medians = [
        {name: statistics.median(one[name] for one in of_stage) for name in of_stage[0]}
        for of_stage in zip(*times, strict=True)
    ]
    return pipeline.simulate([pipeline.StageTimes(**one) for one in medians], M)


def stage_times(net: Net, ours: Ours, part: nn.Module, s: int, S: int, M: int) -> pipeline.StageTimes:
    """Stage ``s`` of ``S``, on one micro-batch."""
    inputs, targets = (given.chunk(M)[0] for given in (net.inputs(), net.targets()))
    count = len(inputs)
    if s > 0:
        inputs = torch.randn(count, *net.width).requires_grad_()
    of_place: dict[str, Any] = {"error": torch.randn(count, *net.error) * 1e-3}
    if s == S - 1:
        of_place = {"loss": lambda output: loss(output, targets)}
    return pipeline.measure_stage(part, inputs, ours.rule, taps=net.taps, repeats=3, **of_place, **ours.options)


def eight_stages(net: Net, rule: str) -> list[results.Row]:
    """Rows of the simulator for eight stages and micro-batches from measured times."""
    outcomes = on_paper(net, RULES[rule], 8, 8)
    print("\n".join(["", f"{net.name}, {rule}, 8 stages, simulated from measured times:", *pipeline.table(outcomes)]))
    gpipe = outcomes[0].time
    # Of backpropagation's schedules there is one row, whatever the rule that was measured beside them.
    mine = [one for one in outcomes[1:] if rule == "DFA" or one.schedule.startswith("direct")]
    suffix = "" if rule == "DFA" else f", {rule}"
    return [
        {"axis": "8 stages, simulated", "net": net.name, "subject": one.schedule + suffix, "reference": "GPipe"}
        | {"throughput": {"median": gpipe / one.time}, "outcome": asdict(one)}
        for one in mine
    ]


HEADER = """\
| network | schedule | beside | throughput | quartiles | simulated | sent: activations, gradients, errors, tangents |
| --- | --- | --- | --- | --- | --- | --- |"""


def line(row: results.Row) -> str:
    """One row of the printed table."""
    throughput = row["throughput"]
    sent = " ".join(f"{count / 2**20:.2f}" for count in row["bytes"][row["subject"]].values())
    theirs = " ".join(f"{count / 2**20:.2f}" for count in row["bytes"][row["reference"]].values())
    numbers = f"{throughput['median']:.2f} | {throughput['lower']:.2f} to {throughput['upper']:.2f}"
    simulated = f"{row['simulated']['throughput']:.2f}"
    return f"| {row['net']} | {row['subject']} | {row['reference']} | {numbers} | {simulated} | {sent} MiB ({theirs}) |"


def main() -> None:
    """Measure, print the tables, put the rows into the file."""
    script.keep_memory()
    parser = script.parser(__doc__, "pipeline.json")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS), help="what to split")
    parser.add_argument("--rounds", type=int, default=9, help="blocks of each schedule (default: 9)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rules = [rule for rule in RULES if script.chosen(rule, options.only)]
    real = [name for name in options.nets if name != PAPER_ONLY]
    for name, answer in zip(real, on_two_processes(real, rules, options.rounds), strict=True):
        for rule in rules:
            found = rows(NETS[name](), rule, *answer)
            print("\n".join([HEADER, *map(line, found)]), flush=True)
            results.write(options.out, script.run(), found)
    for name in options.nets:
        for rule in rules:
            results.write(options.out, script.run(), eight_stages(NETS[name](), rule))


if __name__ == "__main__":
    main()
