"""The choice of a pass: with a stored graph, streaming, learning in the forward pass, or on several threads."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bpfree.axes.layout import resized
from bpfree.distributed import is_sharded, ranks
from bpfree.mechanisms.direct.alternation import Phase
from bpfree.mechanisms.direct.delivery import ErrorHandler, Layout
from bpfree.mechanisms.direct.forward_pass import StoredGraphPass, TappedPass, TrainingPass
from bpfree.mechanisms.direct.learn_in_forward import LearnInForwardPass
from bpfree.mechanisms.direct.segment_leaves import SegmentLeaves, kind_of_pass
from bpfree.mechanisms.direct.streaming import StreamingPass
from bpfree.mechanisms.direct.survey import Survey
from bpfree.mechanisms.direct.threads import ThreadChoice, ThreadedPass
from bpfree.mechanisms.direct.windows import WindowedPass
from bpfree.plan import Plan
from bpfree.rerun.arguments import Arguments
from bpfree.rerun.checkpoints import NOWHERE, checkpoints_around
from bpfree.rerun.snapshot import RunSnapshot


class PassChooser:
    """Starts the passes of one attachment, and keeps what they find out for later passes.

    Args:
        plan: Says which kind of pass was asked for.
        rerun: Runs the model a second time; its first arguments are the calls of taps that are left alone, and which
            taps are cut.

    Attributes:
        carried: With a window, the signals that the taps' segments learned from in the last backward pass.
    """

    def __init__(self, plan: Plan, rerun: Callable[[frozenset[str], Phase, TappedPass, Any], Any]) -> None:
        self._plan, self._rerun = plan, rerun
        self._leaves: dict[Any, SegmentLeaves] = {}
        # The kinds of streaming passes whose runs have been compared.
        self._compared: set[Any] = set()
        self._choice = None if plan.threads == 1 else ThreadChoice(plan.threads)
        self._call: Arguments | None = None
        self._snapshot: RunSnapshot | None = None
        self._storing = 0
        self.carried: list[Tensor | None] = []

    def replan(self, plan: Plan) -> None:
        """Serve a model whose modules have changed."""
        self._plan = plan
        self._leaves.clear()
        self._compared.clear()

    @property
    def needs_arguments(self) -> bool:
        """True if the arguments of a pass must be known."""
        return self._plan.streaming or self._choice is not None

    def note_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the arguments of the next pass, before hooks of the user change them."""
        if not self.needs_arguments:
            return
        self._call = Arguments.of(args, kwargs)
        if self._plan.streaming and not torch.compiler.is_compiling():
            self._snapshot = RunSnapshot.now(self._plan, (args, kwargs))

    def forget(self) -> None:
        """Forget the arguments."""
        self._call = self._snapshot = None

    @contextmanager
    def stored(self) -> Generator[None]:
        """Within this context a pass stores its graph and leaves it to autograd."""
        before = self._storing
        try:
            self._storing += 1
            yield
        finally:
            self._storing = before

    def start(
        self,
        known: Layout | None,
        make_handler: Callable[..., ErrorHandler] | None,
        aside: frozenset[str],
        survey: Survey,
        phase: Phase,
    ) -> TrainingPass:
        """Make the pass that begins.

        Args:
            known: The layout of an earlier pass.
            make_handler: Makes the handler of signals that need no error; None if they need it, or if their targets are
                not there.
            aside: The calls of taps that are left alone.
            survey: The survey of such a pass.
            phase: Which taps it cuts.
        """
        if self._plan.window > 1:
            self.carried = []
            # For measurements: autograd has no gradient of a tap's output here that they could ask for.
            arrived = self.carried if self._storing else None
            together, is_stage = is_sharded(self._plan.model), self._plan.is_stage
            return WindowedPass(self._plan.window, arrived, together=together, is_stage=is_stage)
        # A term that uses a tap which is not cut reaches the tap below, whichever that is.
        soft = survey.places if survey.soft and phase.period > 1 else survey.soft
        if self._storing:
            return StoredGraphPass(soft)
        call, self._call = self._call, None
        if call is None or torch.compiler.is_compiling():
            return StoredGraphPass(soft)
        if self._plan.streaming:
            now = (
                None
                if known is None or make_handler is None
                else self._learning_in_forward(call, known, make_handler, phase)
            )
            snapshot, self._snapshot = self._snapshot, None
            assert snapshot is not None
            rerun, compare = partial(self._rerun, aside, phase), self._plan.verify and self._is_new(call)
            return now or StreamingPass(
                self._plan, rerun, call, snapshot, self._leaves, compare=compare, keeps=bool(survey.soft)
            )
        # A segment that leads out of the model has to wait for what else comes from there.
        if self._choice is None or call.outside or survey.sides or self._ordered():
            return StoredGraphPass(soft)
        return ThreadedPass(self._choice, self._plan.learning)

    def _is_new(self, call: Arguments) -> bool:
        """Return whether this is the first pass with arguments of these shapes, in training or in evaluation."""
        kind = self._plan.model.training, tuple(call.outside), tuple(tensor.shape for tensor in call.tensors())
        new = kind not in self._compared
        self._compared.add(kind)
        return new

    def _ordered(self) -> bool:
        """Return whether segments must run in one order: all processes gather sharded weights together."""
        return ranks() > 1 and is_sharded(self._plan.model)

    def _learning_in_forward(
        self, call: Arguments, known: Layout, make_handler: Callable[..., ErrorHandler], phase: Phase
    ) -> TrainingPass | None:
        """Return a pass that learns as it runs; None unless every gradient comes from one segment, in one process."""
        names = tuple(site.module for site in known.sites)
        leaves = self._leaves.get(kind_of_pass(self._plan, names, (), phase))
        if leaves is None or leaves.shared or not leaves.ends[-1] or call.outside or ranks() > 1:
            return None
        if checkpoints_around() is not NOWHERE:  # whose second run of this pass finds the targets used
            return None

        def signals(first: torch.Size) -> Sequence[Tensor | None]:
            layout = known.resized(resized(known.sites, first))
            cut = [number for number, site in enumerate(layout.sites) if phase.cuts(number, site.name)]
            return make_handler(layout, cut=cut)(known.like.new_zeros(()).expand(*layout.rows.shape, known.c))

        return LearnInForwardPass(names, signals, leaves.ends)

    def describe(self) -> list[str]:
        """Return the remarks for the attachment's table."""
        remarks = [] if self._choice is None else [self._choice.describe()]
        if self._plan.window > 1:
            window = self._plan.window
            up = "one tap" if window == 2 else f"{window - 1} taps"
            ends = ", or from that of the stage's last tap" if self._plan.is_stage else ""
            remarks.append(
                f"With a window of {window}, layers learn from the signal {up} further up than their row says{ends}."
            )
        return remarks
