"""Simulate a schedule: compute makespan, bubble and stored activations from the times of the stages.

Every stage works in the order of the runtime (:mod:`bpfree.pipeline.order`). Each piece of work begins as soon as the
stage is free and its inputs have come. There is no randomness: the same times give the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

import torch
from torch import Tensor

from bpfree.errors import OptionError
from bpfree.pipeline.order import ahead, due
from bpfree.tabulate import tabulate


@dataclass(frozen=True)
class StageTimes:
    """The times of one micro-batch in one stage, in any unit (the same everywhere).

    Attributes:
        forward: The forward pass; in the last stage with the loss.
        input_gradient: Backpropagation's gradient of the stage's input.
        weight_gradient: The gradients of its parameters.
        local: The work of a stage after the error has come: the projections and its segments' own backward passes.
            None: as long as ``weight_gradient``, which is right if every segment is one layer.
        estimate: The estimating pass that follows a forward pass, on average over micro-batches; 0 for a rule without.
    """

    forward: float = 1.0
    input_gradient: float = 1.0
    weight_gradient: float = 1.0
    local: float | None = None
    estimate: float = 0.0


@dataclass(frozen=True)
class Transfers:
    """The times to send one micro-batch's tensors; stages work meanwhile.

    Attributes:
        activation: From a stage to the next.
        gradient: From a stage to the one before.
        error: From the last stage to any other; with an estimating pass also what its output answers.
        tangent: From a stage to the next, behind the activations of an estimating pass.
    """

    activation: float = 0.0
    gradient: float = 0.0
    error: float = 0.0
    tangent: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """The result of a simulated schedule.

    Attributes:
        schedule: Its name.
        time: From the start of a batch to the end of its last piece of work; of a schedule that begins the next batch
            at once, from one batch to the next in the long run.
        throughput: Micro-batches in a unit of time.
        bubble: The fraction of the stages' time in which they do nothing.
        stored: The most micro-batches whose activations any stage holds at one time.
    """

    schedule: str
    time: float
    throughput: float
    bubble: float
    stored: int


class Work(IntEnum):
    """The kinds of work of a stage on one micro-batch."""

    FORWARD = 0
    BACKWARD = 1
    """Input and weight gradients at once."""
    INPUT = 2
    """Input gradients alone."""
    WEIGHT = 3
    """Weight gradients alone."""
    LOCAL = 4
    """The segments' own backward passes from the projected error."""
    ESTIMATE = 5
    """The estimating pass behind a forward pass."""


_FREES = (Work.BACKWARD, Work.WEIGHT, Work.LOCAL)
"""After which a micro-batch's activations are stored no longer; no schedule has two of them."""


@dataclass
class _Progress:
    """The progress of every stage.

    Attributes:
        S: The number of stages.
        M: The number of micro-batches in a batch.
        total: Micro-batches in all.
        stage: 0 to S - 1, shape ``(S,)``, int64.
        counts: For each kind of work, the number of micro-batches that it is done for, shape ``(6, S)``, int64.
    """

    S: int
    M: int
    total: int
    stage: Tensor
    counts: Tensor

    def of(self, work: Work) -> Tensor:
        """Return the number of micro-batches that this work is done for, by stage."""
        return self.counts[work]


Order: TypeAlias = Callable[[_Progress], Tensor]
"""The next kind of work of each stage, shape ``(S,)``; it is not asked for stages that have finished."""


def _gpipe(at: _Progress) -> Tensor:
    """Return the work of GPipe: all forward passes, then all backward passes (Huang et al. 2019)."""
    return torch.where(at.of(Work.FORWARD) < at.M, Work.FORWARD, Work.BACKWARD)


def _one_forward_one_backward(at: _Progress) -> Tensor:
    """Return the work of 1F1B: S - s forward passes ahead, then one per backward pass (Narayanan et al. 2019)."""
    forwarded = at.of(Work.FORWARD)
    more = (forwarded < at.M) & (forwarded - at.of(Work.BACKWARD) <= ahead(at.stage, at.S))
    return torch.where(more, Work.FORWARD, Work.BACKWARD)


def _zero_bubble(at: _Progress) -> Tensor:
    """Return the work of ZB-H1: 1F1B with weight gradients postponed by s micro-batches (Qi et al. 2024)."""
    forwarded, carried, weighed = at.of(Work.FORWARD), at.of(Work.INPUT), at.of(Work.WEIGHT)
    more = (forwarded < at.M) & (forwarded - carried <= ahead(at.stage, at.S))
    owes = (carried - weighed > at.stage) | (carried == at.M)
    return torch.where(owes, Work.WEIGHT, torch.where(more, Work.FORWARD, Work.INPUT))


def _direct(staleness: int, *, estimates: bool) -> Order:
    def order(at: _Progress) -> Tensor:
        forwarded = at.of(Work.FORWARD)
        owes = at.of(Work.LOCAL) < due(forwarded, ahead(at.stage, at.S), at.M, staleness)
        work = torch.where(owes | (forwarded == at.total), Work.LOCAL, Work.FORWARD)
        return torch.where(at.of(Work.ESTIMATE) < forwarded, Work.ESTIMATE, work) if estimates else work

    return order


def simulate(
    times: Sequence[StageTimes], micro_batches: int, transfers: Transfers | None = None, *, staleness: int = 1
) -> list[Outcome]:
    """Time GPipe, 1F1B and zero-bubble backpropagation, and direct feedback's two schedules.

    With a forward pass, an input-gradient and a weight-gradient pass of one unit each, 8 stages and 8 micro-batches
    take 45, 45, 31, 23 and 16 units.

    Args:
        times: One entry a stage, the first stage first.
        micro_batches: M, the micro-batches of one batch.
        transfers: The times to send tensors; None for no time at all.
        staleness: The number of updates that the asynchronous schedule may lag behind.

    Returns:
        One outcome a schedule, in the order above.

    Raises:
        OptionError: No stage, no micro-batch, or a negative staleness.
    """
    if not times or micro_batches < 1 or staleness < 0:
        raise OptionError(
            f"simulate: {len(times)} stages, {micro_batches} micro-batches and staleness={staleness}; at least one "
            "stage and one micro-batch are needed, and staleness counts updates from 0."
        )
    paper = _Paper(times, micro_batches, transfers or Transfers())
    return [
        paper.one_batch("GPipe", _gpipe, Work.BACKWARD),
        paper.one_batch("1F1B", _one_forward_one_backward, Work.BACKWARD),
        paper.one_batch("ZB-H1", _zero_bubble, Work.INPUT, Work.WEIGHT),
        paper.one_batch("direct, synchronous", paper.direct(0), *paper.learning),
        paper.long_run("direct, asynchronous", staleness),
    ]


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """Return lines of a text table; the last column is the throughput relative to the first outcome's."""
    header = ["schedule", "time", "bubble", "stored", f"throughput / {outcomes[0].schedule}"]
    rows = [
        [
            one.schedule,
            f"{one.time:.4g}",
            f"{one.bubble:.1%}",
            str(one.stored),
            f"{one.throughput / outcomes[0].throughput:.2f}",
        ]
        for one in outcomes
    ]
    return tabulate(header, rows)


class _Paper:
    """Stages with their times, on which schedules are tried."""

    def __init__(self, times: Sequence[StageTimes], M: int, transfers: Transfers) -> None:
        self.S, self.M = len(times), M
        self.stage = torch.arange(self.S)
        columns = [_durations(stage) for stage in times]
        self.durations = torch.tensor(columns, dtype=torch.float64).T
        own, last = self.stage, self.S - 1
        self.estimates = bool(self.durations[Work.ESTIMATE].any())
        # The work of direct feedback behind a forward pass.
        self.learning = (Work.ESTIMATE, Work.LOCAL) if self.estimates else (Work.LOCAL,)
        # For each kind of work, what it waits for: whose work, which kind, and the time to send the result.
        sources = [own - 1, own + 1, own + 1, own, torch.full_like(own, last), own - 1]
        self.source = torch.stack(sources).clamp(0, last)
        # The last stage has the error, and the answer to the perturbations, when its own estimating pass is over.
        told = Work.ESTIMATE if self.estimates else Work.FORWARD
        self.source_work = torch.tensor([Work.FORWARD, Work.BACKWARD, Work.INPUT, Work.INPUT, told, Work.ESTIMATE])
        under_way = [
            transfers.activation, transfers.gradient, transfers.gradient, 0.0, transfers.error, transfers.tangent,
        ]  # fmt: skip
        self.delay = torch.tensor(under_way, dtype=torch.float64)[:, None].repeat(1, self.S)
        self.delay[Work.LOCAL, last] = 0.0
        # The first stage's forward and estimating passes and the last one's backward passes wait for nobody.
        self.free = torch.zeros(len(Work), self.S, dtype=torch.bool)
        self.free[Work.FORWARD, 0] = self.free[Work.ESTIMATE, 0] = True
        self.free[Work.BACKWARD, last] = self.free[Work.INPUT, last] = True

    def direct(self, staleness: int) -> Order:
        """Return the order of direct feedback."""
        return _direct(staleness, estimates=self.estimates)

    def one_batch(self, name: str, order: Order, *learning: Work) -> Outcome:
        """Return the outcome if each batch ends before the next begins."""
        ended, stored = self._run(order, self.M, (Work.FORWARD, *learning))
        return self._outcome(name, float(ended[learning[-1]].max()), stored, learning)

    def long_run(self, name: str, staleness: int) -> Outcome:
        """Return the outcome of direct feedback if one batch follows another without a pause."""
        # Stages are never more than staleness + 1 batches apart, so after as many batches the pattern repeats itself.
        cycle = staleness + 1
        ended, stored = self._run(self.direct(staleness), 4 * cycle * self.M, (Work.FORWARD, *self.learning))
        marks = ended[Work.LOCAL][-1, self.M - 1 :: self.M]
        time = float(marks[-1] - marks[-1 - 2 * cycle]) / (2 * cycle)
        return self._outcome(name, time, stored, self.learning)

    def _outcome(self, name: str, time: float, stored: int, learning: Sequence[Work]) -> Outcome:
        busy = self.M * float(self.durations[[Work.FORWARD, *learning]].sum())
        return Outcome(name, time, self.M / time, 1 - busy / (self.S * time), stored)

    def _run(self, order: Order, total: int, works: Sequence[Work]) -> tuple[dict[Work, Tensor], int]:
        """Return by kind the times ``(S, total)`` at which work ends, and the most micro-batches stored."""
        at = _Progress(self.S, self.M, total, self.stage, torch.zeros(len(Work), self.S, dtype=torch.int64))
        rows = torch.tensor([works.index(work) if work in works else 0 for work in Work])
        ended = torch.full((len(works), self.S, total), math.nan, dtype=torch.float64)
        clock, stored, frees = torch.zeros(self.S, dtype=torch.float64), 0, works[-1]
        while True:
            work = order(at)
            k = at.counts[work, self.stage]
            arrived = ended[rows[self.source_work[work]], self.source[work, self.stage], k.clamp(max=total - 1)]
            arrived = torch.where(self.free[work, self.stage], 0.0, arrived + self.delay[work, self.stage])
            (now,) = torch.nonzero((k < total) & ~arrived.isnan(), as_tuple=True)
            if not len(now):
                return dict(zip(works, ended, strict=True)), stored
            work, k = work[now], k[now]
            clock[now] = torch.maximum(clock[now], arrived[now]) + self.durations[work, now]
            ended[rows[work], now, k] = clock[now]
            at.counts[work, now] += 1
            stored = max(stored, int((at.of(Work.FORWARD) - at.of(frees)).max()))


def _durations(times: StageTimes) -> list[float]:
    backward = times.input_gradient + times.weight_gradient
    local = times.weight_gradient if times.local is None else times.local
    return [times.forward, backward, times.input_gradient, times.weight_gradient, local, times.estimate]
