"""The first look at a kind of pass: a survey of its whole graph, and a check of the laws of the rule."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from bpfree.axes.sites import Site
from bpfree.containers import tensors_in
from bpfree.errors import BpfreeError, SecondRunError, VerificationError
from bpfree.forward_mode.eager import eager
from bpfree.forward_mode.grad_mode import silent_rules
from bpfree.forward_mode.own_pass import OwnPass
from bpfree.mechanisms.direct.alternation import EVERY_TAP, Phase
from bpfree.mechanisms.direct.exact_signals import ExactSignals
from bpfree.mechanisms.direct.pass_state import PassState
from bpfree.mechanisms.direct.side_terms import fetched_through
from bpfree.mechanisms.direct.streaming import keeps_graphs, refuse_gradients, transforms_in_stream
from bpfree.mechanisms.direct.survey import Survey, SurveyPass
from bpfree.rerun.arguments import Call, holders_in
from bpfree.rerun.checkpoints import checkpoints_off
from bpfree.rerun.find_holders import objects_among
from bpfree.rerun.module_state import State
from bpfree.rerun.own_graphs import OverwrittenError, of_version, own_graphs, with_version
from bpfree.rerun.saved_tensors import forbids_hooks, hooked_saved_tensors
from bpfree.rerun.trial import copied, without_trace
from bpfree.verification.finding import NOT_LEARNED, Finding
from bpfree.verification.laws import GradientSketch
from bpfree.verification.rows import check_rows

if TYPE_CHECKING:
    from bpfree.mechanisms.direct.mechanism import DirectMechanism

_LaidOut: TypeAlias = tuple[Tensor, list[Tensor], Sequence[Site]]
"""An error, the taps below it, and their sites."""

_SHARE = 0.25
"""The largest share of a step's memory that the exact signals may take; if they need more, they are not compared."""


class Inspection:
    """The first look at one kind of pass.

    Args:
        mechanism: The rule on its model.
        call: The model's arguments and keyword arguments.
        thorough: True makes the checks that need much memory too.

    Attributes:
        survey: The survey of the whole graph.
        findings: The laws that do not hold.
        sites: The taps below any error, by call.
        unheard: The modules whose full backward hooks see other gradients than under backpropagation.
    """

    def __init__(self, mechanism: DirectMechanism, call: Any, *, thorough: bool = False) -> None:
        self._mechanism, self._call, self._thorough = mechanism, call, thorough
        self.findings: list[Finding] = []
        self.sites: dict[str, Site] = {}
        self.unheard: set[str] = set()
        # Without them the memory of the graph is not counted: only small signals are compared.
        self._hooks_saving = True
        plan = mechanism.plan
        taps = set() if plan.window > 1 else set(plan.taps.values())
        hooked = {
            name: module
            for name, module in plan.model.named_modules()
            if (module._backward_hooks or module._backward_pre_hooks) and name
        }
        self._hooked = {name: module for name, module in hooked.items() if module not in taps}
        self._hooked_taps = hooked.keys() - self._hooked.keys()
        # No layerwise rule within the segments takes part: the comparison is with backpropagation's signals.
        with silent_rules(), own_graphs():
            exact = self._look_where_hooks_may_be_forbidden()
            if thorough or not plan.streaming:
                self._compare(exact)
            with suppress(OverwrittenError):
                self.findings += mechanism.check_estimates(call, list(self.sites.values()), thorough=thorough)

    def _look_where_hooks_may_be_forbidden(self) -> ExactSignals | None:
        """Look, and without hooks on saved tensors where the model itself uses transforms of torch.func."""
        try:
            return self._look()
        except RuntimeError as error:
            if not forbids_hooks(error):
                raise
            if self._mechanism.plan.streaming and not self._thorough:
                raise transforms_in_stream() from error
            self._hooks_saving = False
            return self._look()

    def _look(self) -> ExactSignals | None:
        """Run the model with its graph whole."""
        plan = self._mechanism.plan
        # A stream never holds the graph of a whole pass.
        stored = self._thorough or not plan.streaming
        graph = _Graph(stored)
        found = SurveyPass(graph.begin_segment)
        with without_trace(plan, self._call) as watched:
            given = copied(self._call)
            # A checkpoint would run its part again from numbers of an earlier segment, which are gone by then.
            whole = nullcontext() if stored else checkpoints_off()
            hooks = hooked_saved_tensors(graph.pack, graph.unpack) if self._hooks_saving else nullcontext()
            with hooks, whole, self._listening() as heard:
                returned = self._run(PassState(tapped=found, again=True), given, watched)
            self.unheard = set(heard)
            if self._hooked_taps:
                self.unheard |= found.idle & self._hooked_taps
            self.survey = Survey.of(found, returned, self._kept(given))
            if plan.streaming:
                self._require_kept_graphs(found, given)
            del returned, heard
            laid_out = self._laid_out(found)
            self.sites = {site.name: site for _, _, sites in laid_out for site in sites}
            if found.is_overwritten:
                return None
            graph.is_over = True
            if not stored:
                with suppress(OverwrittenError):
                    self._compare_rows(_of_tap(found.taps[-1], laid_out) if found.taps else [], math.inf)
                return None
            taps = sum(tap.numel() * tap.element_size() for tap in found.taps)
            weights = sum(weight.numel() * weight.element_size() for weight in plan.parameters)
            room = _SHARE * (graph.bytes + 2 * weights)
            with suppress(OverwrittenError):
                self._compare_rows(laid_out, room / 4)
            if not self._thorough and taps > room:
                return None
            with suppress(OverwrittenError):
                return ExactSignals.of(found, self._compared())
            return None

    def _compared(self) -> dict[str, Tensor]:
        """Return the parameters whose gradients are compared, by name.

        A window sends gradients to leaves, past weights that ``functional_call`` lends and that are computed of others.
        """
        plan = self._mechanism.plan
        return {name: weight for name, weight in plan.model.named_parameters() if weight.is_leaf or plan.window == 1}

    def _kept(self, given: Any) -> Iterator[Tensor]:
        """Yield the tensors with a graph that the model, its hooks and its arguments keep."""
        places = [*self._mechanism.plan.state.holders, *holders_in(*given)]
        return (tensor for holder in places for _, tensor in holder.tensors if tensor.requires_grad)

    def _require_kept_graphs(self, found: SurveyPass, given: Any) -> None:
        """Raise StreamingError if tensors are kept behind the error's place, where no dry run finds them."""
        graphs = self._mechanism.plan.state.graphs() | State(objects_among(*given)).graphs()
        if left := [name for name, kept in graphs.items() if found.is_kept_behind(kept)]:
            raise keeps_graphs(left)

    def _laid_out(self, found: SurveyPass) -> list[_LaidOut]:
        """Return every error with the taps below it, and their sites."""
        mechanism, survey, result = self._mechanism, self.survey, []
        aside = mechanism.first_look.left_alone(survey)
        for name, error in found.errors.items():
            below = [
                number
                for number, place in enumerate(found.places)
                if place in survey.below[name] and place not in aside
            ]
            if below and error.dim():
                sites = mechanism.layouts.of_survey(found, survey, name, below)
                result.append((error, [found.taps[number] for number in below], sites))
        return result

    def _compare_rows(self, laid_out: Sequence[_LaidOut], room: float) -> None:
        """Check that the layout has the same rows as the graph, at one tap or as many as fit into ``room``."""
        plan = self._mechanism.plan
        asked = plan.batch_dims is not None or plan.sample_axes is not None
        for error, taps, sites in laid_out:
            seen = _fitting([tap.numel() * tap.element_size() for tap in taps], room, every=self._thorough)
            self.findings += check_rows([taps[i] for i in seen], error, [sites[i] for i in seen], asked=asked)

    def _compare(self, exact: ExactSignals | None) -> None:
        """Run the model cut, and send the exact signals to its taps; without them only check that it runs.

        Every tap is cut, also where steps cut them in turns: what is right then is right with fewer cuts.
        """
        alternation = self._mechanism.alternation
        phases = [EVERY_TAP, *alternation.phases] if self._thorough and alternation is not None else [EVERY_TAP]
        for phase in phases:
            self._compare_cut(exact, phase)

    def _compare_cut(self, exact: ExactSignals | None, phase: Phase) -> None:
        mechanism, plan = self._mechanism, self._mechanism.plan
        state = PassState(again=True, survey=self.survey, signals={} if exact is None else dict(exact.signals))
        with without_trace(plan, self._call) as watched, mechanism.stored():
            state.tapped, found = mechanism.start_pass(self.survey, phase), None
            with suppress(OverwrittenError):
                found = self._gradients_of_cut(state, exact, watched)
        if exact is not None and found is not None:
            self.findings += found.compare(exact.gradients, exact.dtype)

    @contextmanager
    def _listening(self) -> Generator[dict[str, list[Tensor]]]:
        """Within this context note the outputs that have a graph, of all modules with backward hooks."""
        heard: dict[str, list[Tensor]] = {}

        def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
            graphs = [tensor for _, tensor in tensors_in(output) if tensor.requires_grad]
            if graphs:
                heard.setdefault(name, []).extend(graphs)

        with OwnPass(self._mechanism.plan.model, called=True) as own, ExitStack() as stack:
            for name, module in self._hooked.items():
                stack.enter_context(own.hooked({module: partial(note, name)}))
            yield heard

    def _gradients_of_cut(
        self, state: PassState, exact: ExactSignals | None, watched: AbstractContextManager[Any]
    ) -> GradientSketch | None:
        given = copied(self._call)
        try:
            with self._listening() as heard:
                returned = self._run(state, given, watched)
            if self._hooked and self._mechanism.plan.window == 1:  # segments of a window run once for every step
                terms = [*(tensor for _, tensor in tensors_in(returned)), *self._kept(given)]
                self.unheard -= heard.keys() - fetched_through(heard, terms)
            if exact is None:
                return None
            return exact.gradients_of(state.exits, self._compared())
        except (BpfreeError, OverwrittenError):
            raise
        except RuntimeError as error:
            raise VerificationError(
                f"with the rule the model's own pass fails, and without it does not ({error}). It may "
                "differentiate within its forward pass, as for forces: tap other modules (taps=...), or train it by "
                "bpfree.BP()."
            ) from error

    def _run(
        self,
        state: PassState,
        given: Call,
        watched: AbstractContextManager[Any],
    ) -> Any:
        args, kwargs = given
        # Parts that are compiled one by one have graphs of their own, in which no tap can be found.
        with self._mechanism.running(state), eager(), watched:
            return self._mechanism.plan.model(*args, **kwargs)

    def require_right(self) -> None:
        """Raise VerificationError for the first finding that would let the model learn something else."""
        wrong = [finding for finding in self.findings if finding.wrong]
        if wrong:
            more = f" {len(wrong) - 1} more: bpfree.verify(attachment, *inputs) lists them." if wrong[1:] else ""
            kind = SecondRunError if wrong[0].check == "second run" else VerificationError
            raise kind(f"{wrong[0]}{more} {NOT_LEARNED}")


def _fitting(sizes: Sequence[int], room: float, *, every: bool) -> list[int]:
    """Return the numbers of the smallest entries that together fit into ``room``, at least one; all if ``every``."""
    seen: list[int] = []
    for number in sorted(range(len(sizes)), key=lambda number: sizes[number]):
        room -= sizes[number]
        if every or not seen or room >= 0:
            seen.append(number)
    return sorted(seen)


def _of_tap(tap: Tensor, laid_out: Sequence[_LaidOut]) -> list[_LaidOut]:
    """Return the errors above one tap with this tap alone."""
    return [(error, [one], [site]) for error, taps, sites in laid_out for one, site in zip(taps, sites, strict=True)
            if one is tap]  # fmt: skip


@dataclass
class _Graph:
    """A graph, and its memory in bytes.

    Attributes:
        stored: True if it holds the numbers of every segment; else it holds those of the last one alone.
        is_over: True if the pass is over. Before, a graph that is not stored gives no numbers.
        storages: The bytes of each storage that a stored graph holds.
        latest: The tensors that have been saved in the present segment of a graph that is not stored.
    """

    stored: bool
    is_over: bool = False
    storages: dict[int, int] = field(default_factory=dict)
    latest: list[list[tuple[Tensor, int]]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(self.storages.values())

    def begin_segment(self) -> None:
        """Drop the numbers of the segment that has ended."""
        for held in self.latest:
            held.clear()
        self.latest.clear()

    def pack(self, tensor: Tensor) -> list[tuple[Tensor, int]]:
        held = [with_version(tensor)]
        if not self.stored:
            self.latest.append(held)
        elif tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            self.storages[storage.data_ptr()] = storage.nbytes()
        return held

    def unpack(self, held: list[tuple[Tensor, int]]) -> Tensor:
        if not self.stored and not (self.is_over and held):
            return refuse_gradients(None)
        return of_version(held[0])
