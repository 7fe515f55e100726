"""The declaration: which rules, which features, and which cells have something to say. docs/support.md is made of it.

A cell that is not in :data:`CELLS` holds, without a word. ``make support`` writes the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import bpfree
from bpfree import DFA, DKP, DRTP, FA, FDFA, LMS, PEPITA, ForwardGradient, GrAPE, SignSymmetry

WITH_BREAKS = "Graph breaks"
"""A note on a compiled model that begins so says that it is not one graph."""


@dataclass(frozen=True)
class Row:
    """A rule, and how it is attached.

    Attributes:
        name: How the page calls it.
        rule: The rule. Perturbations are random signs throughout: they are the same numbers in every precision.
        options: Arguments of ``bpfree.attach``.
    """

    name: str
    rule: bpfree.Rule
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def plain(self) -> Row:
        """The row that must give the same numbers: the stored graph, one segment after another."""
        kept = {option: value for option, value in self.options.items() if option not in ("streaming", "threads")}
        return Row(self.name, self.rule, kept)

    @property
    def follows_the_loss(self) -> bool:
        """Whether a loss twice as large gives gradients twice as large."""
        return not isinstance(self.rule, DRTP | PEPITA) and getattr(self.rule, "error", "exact") == "exact"

    @property
    def remembers(self) -> bool:
        """Whether a pass depends on how many there were before, at the same weights."""
        mirrors = isinstance(self.rule, bpfree.WeightMirror)
        redraws = isinstance(self.rule, SignSymmetry) and self.rule.redraws
        return mirrors or redraws or isinstance(self.rule, DKP | FDFA | GrAPE | LMS | ForwardGradient)


@dataclass(frozen=True)
class Feature:
    """Something of PyTorch's that a training run may use.

    Attributes:
        name: The column's key.
        title: Its heading.
        means: What is tested, for every rule.
    """

    name: str
    title: str
    means: str


@dataclass(frozen=True)
class Cell:
    """What is to be said of one rule under one feature.

    Attributes:
        status: ``"holds"``, ``"gap"`` (a test that is expected to fail, and must) or ``"meaningless"`` (no test).
        reason: Why, or for ``"holds"`` what to know.
    """

    status: Literal["holds", "gap", "meaningless"]
    reason: str = ""


def _rows() -> list[Row]:
    signs: dict[str, Any] = {"perturbations": "rademacher"}
    return [
        Row("BP", bpfree.BP()),
        Row("Shallow", bpfree.Shallow()),
        Row("DFA", DFA()),
        Row("DFA, one matrix a tap", DFA(feedback=bpfree.Feedback("launay2019", shared=False))),
        Row("DFA, ternary", DFA(error="ternary")),
        Row("DFA, window 2", DFA(), {"window": 2}),
        Row("DFA, alternate 2", DFA(), {"alternate": 2}),
        Row("DFA, FA within", DFA(), {"within": FA()}),
        Row("DFA, streaming", DFA(), {"streaming": True}),
        Row("DFA, 2 threads", DFA(), {"threads": 2}),
        Row("DRTP", DRTP()),
        Row("DRTP, streaming", DRTP(), {"streaming": True}),
        Row("GrAPE", GrAPE()),
        Row("GrAPE, calibrated", GrAPE(calibrate=2)),
        Row("GrAPE, streaming", GrAPE(), {"streaming": True}),
        Row("FDFA", FDFA()),
        Row("FDFA, alternate 2", FDFA(), {"alternate": 2}),
        Row("FDFA, every second pass", FDFA(every=2)),
        Row("LMS", LMS()),
        Row("LMS, stepped by an optimizer", LMS(stepped_by="optimizer")),
        Row("DKP", DKP()),
        Row("DKP, streaming", DKP(), {"streaming": True}),
        Row("FA", FA()),
        Row("SignSymmetry, uniform", SignSymmetry()),
        Row("SignSymmetry, fixed", SignSymmetry("fixed")),
        Row("SignSymmetry, batch", SignSymmetry("batch")),
        Row("KolenPollack", bpfree.KolenPollack()),
        Row("WeightMirror", bpfree.WeightMirror()),
        Row("PEPITA", PEPITA()),
        Row("ForwardGradient, activations", ForwardGradient(**signs)),
        Row("ForwardGradient, weights", ForwardGradient("weights", **signs)),
    ]


ROWS = {row.name: row for row in _rows()}

FEATURES = {
    feature.name: feature
    for feature in (
        Feature(
            "ddp",
            "DDP",
            "DistributedDataParallel on two processes with half of the batch each. After three steps weights and "
            "feedback are those of one process on the whole batch, and the same on both. Rules with an estimating pass "
            "are compared with one process that has the perturbations of both.",
        ),
        Feature(
            "fsdp2",
            "FSDP2",
            "The same with `fully_shard` on every layer and on the model. Attach first, then shard.",
        ),
        Feature(
            "lightning",
            "Lightning, DDP",
            "The same with a LightningModule, automatic optimization and the DDP strategy.",
        ),
        Feature(
            "pipeline",
            "Pipelines",
            "Two stages on two processes, two micro-batches, the synchronous schedule. After three steps weights and "
            "feedback are those of one process that accumulates over the same micro-batches.",
        ),
        Feature(
            "compile",
            "torch.compile",
            "Three steps of the compiled model give the weights and the feedback of the eager one. It is one full "
            "graph unless a note says that it breaks.",
        ),
        Feature(
            "bf16_autocast",
            "bf16 autocast",
            "Three steps under `torch.autocast` change weights and feedback as in float32, to 5 %.",
        ),
        Feature(
            "bf16_weights",
            "bf16 weights",
            "The gradients of a model in bfloat16 are those of float32 to 5 %. Feedback that learns by itself is after "
            "20 passes where it is in float32, to 5 %.",
        ),
        Feature(
            "scaler",
            "GradScaler",
            "With a loss scaled by a power of two the steps are the same. Under fp16 autocast a step that overflows is "
            "skipped, and the next ones change the weights as in float32, to 5 %.",
        ),
        Feature(
            "checkpointing",
            "Checkpointing",
            "Activation checkpointing (`use_reentrant=False`) inside a segment, with dropout, changes no number.",
        ),
        Feature(
            "accumulation",
            "Accumulation",
            "Two backward passes give the sum of what each gives alone. Where a pass depends on the weights only, this "
            "is the gradient of the whole batch.",
        ),
        Feature(
            "resume",
            "Resuming",
            "Model, attachment and optimizer restored from their `state_dict` continue bit for bit.",
        ),
        Feature(
            "streaming",
            "Streaming",
            "`streaming=True` gives the weights, statistics and feedback of the stored graph.",
        ),
    )
}

_ESTIMATING = [row.name for row in ROWS.values() if isinstance(row.rule, FDFA | GrAPE | LMS)] + [
    "ForwardGradient, activations"
]
_LEARNED = ["KolenPollack", "WeightMirror"] + [
    name for name, row in ROWS.items() if isinstance(row.rule, DKP | FDFA | GrAPE | LMS)
]
_WITHOUT_STREAM = [
    name
    for name, row in ROWS.items()
    if not isinstance(row.rule, bpfree.DirectRule) or getattr(row.rule, "of", "") == "weights"
]
_UNUSED = Cell("holds", "With `find_unused_parameters=True`.")


def _cells() -> Iterator[tuple[str, str, Cell]]:
    yield "ddp", "Shallow", _UNUSED
    yield "lightning", "Shallow", _UNUSED
    yield (
        "fsdp2",
        "DFA, 2 threads",
        Cell("holds", "Segments run one after another: weights are gathered in one order."),
    )
    yield from _in_pipelines()
    for row in _LEARNED:
        yield "bf16_weights", row, Cell("holds", "Feedback that learns is kept in float32.")
    yield "fsdp2", "KolenPollack", Cell("holds", "W is sharded, B is whole on every process.")
    yield "fsdp2", "WeightMirror", Cell("holds", "W is gathered, layer by layer, for its mirror step.")
    yield from _compiled()
    for feature in ("bf16_autocast", "bf16_weights"):
        reason = "Signals are differences of nearly equal activations: too few of bfloat16's 8 bits are left."
        yield feature, "PEPITA", Cell("gap", reason)
    yield from _scaled()
    yield from _accumulated()
    for row in _WITHOUT_STREAM:
        yield (
            "streaming",
            row,
            Cell("meaningless", "Not a direct rule: it needs the whole graph, or never stores one."),
        )
    yield "streaming", "DFA, window 2", Cell("meaningless", "A window keeps the graphs of several segments.")
    yield "streaming", "DFA, 2 threads", Cell("meaningless", "Streaming runs one segment at a time.")


def _in_pipelines() -> Iterator[tuple[str, str, Cell]]:
    for name, row in ROWS.items():
        if isinstance(row.rule, bpfree.BP):
            yield "pipeline", name, Cell("meaningless", "torch's own schedules train by it.")
        elif isinstance(row.rule, bpfree.LayerwiseRule):
            yield "pipeline", name, Cell("meaningless", "Gradients go back layer by layer; within stages it may.")
        elif isinstance(row.rule, PEPITA) or getattr(row.rule, "of", "") == "weights":
            yield "pipeline", name, Cell("meaningless", "It runs whole forward passes, and has no segments.")
        elif {"streaming", "threads"} & row.options.keys():
            yield "pipeline", name, Cell("meaningless", "A stage stores the graphs of its micro-batches.")
    ends = "The tap at which a stage ends is cut in every step besides."
    for name in ("DFA, alternate 2", "FDFA, alternate 2"):
        yield "pipeline", name, Cell("holds", ends)
    yield "pipeline", "DFA, window 2", Cell("holds", "A window ends where its stage ends.")
    reason = "Refused by name: a calibrating pass is backpropagation."
    yield "pipeline", "GrAPE, calibrated", Cell("gap", reason)
    reason = "Refused by name: its signals wait for what the output answers."
    yield "pipeline", "ForwardGradient, activations", Cell("gap", reason)


def _compiled() -> Iterator[tuple[str, str, Cell]]:
    for row in _ESTIMATING:
        yield "compile", row, Cell("holds", f"{WITH_BREAKS}: the estimating pass, and the feedback's steps.")
    for row in ("DKP", "DKP, streaming"):
        yield "compile", row, Cell("holds", f"{WITH_BREAKS}: the feedback's steps.")
    for row in ("DFA, streaming", "DRTP, streaming"):
        yield "compile", row, Cell("holds", "A compiled pass stores its graph.")
    yield "compile", "DFA, 2 threads", Cell("holds", "A compiled pass runs its segments one after another.")
    yield "compile", "DFA, window 2", Cell("holds", f"{WITH_BREAKS}: windows look into the graph.")
    yield "compile", "SignSymmetry, batch", Cell("holds", f"{WITH_BREAKS}: new magnitudes are drawn.")
    yield "compile", "KolenPollack", Cell("holds", f"{WITH_BREAKS}: B's gradients are copied when a pass ends.")
    yield "compile", "WeightMirror", Cell("holds", f"{WITH_BREAKS}: the mirror steps.")
    yield "compile", "PEPITA", Cell("holds", f"{WITH_BREAKS}: there is no graph to compile backward.")
    reason = "Compiled graphs drop forward-mode tangents, which this rule's forward pass needs. An error says so."
    yield "compile", "ForwardGradient, weights", Cell("gap", reason)


def _scaled() -> Iterator[tuple[str, str, Cell]]:
    for row in ("DFA, ternary", "DRTP", "DRTP, streaming"):
        yield "scaler", row, Cell("gap", "The signal does not follow the loss's scale. Use bfloat16.")
    yield "scaler", "PEPITA", Cell("gap", "The size of the error matters, and the scale changes it. Use bfloat16.")
    for row in ("DKP", "DKP, streaming"):
        reason = "Its decay is divided by the loss's scale: use `decay=0` and the optimizer's weight decay."
        yield "scaler", row, Cell("gap", reason)
    yield "scaler", "LMS, stepped by an optimizer", Cell("holds", "The feedback has an optimizer of its own.")


def _accumulated() -> Iterator[tuple[str, str, Cell]]:
    for name, row in ROWS.items():
        if not row.follows_the_loss:
            yield "accumulation", name, Cell("holds", "Divide the gradients by the number of passes, not the loss.")
        elif isinstance(row.rule, DKP | FDFA | GrAPE | LMS):
            yield "accumulation", name, Cell("holds", "The feedback learns in every backward pass.")
        elif row.remembers:
            yield "accumulation", name, Cell("holds", "Every pass draws new random numbers.")


CELLS = {(feature, row): cell for feature, row, cell in _cells()}

_PLAIN = Cell("holds")


def cell(feature: str, row: str) -> Cell:
    """What is to be said of ``row`` under ``feature``."""
    return CELLS.get((feature, row), _PLAIN)
