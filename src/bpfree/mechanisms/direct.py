"""The mechanism of the direct rules: the graph is cut at every tap, and the error sends each its signal.

A forward hook at a tap takes the output h, with the graph of its own segment, and hands on ``h.detach()``, which
requires no gradient, so that autograd never forms W^T delta. What becomes of h, and on which way its signal reaches it,
is up to the :class:`bpfree.mechanisms.passage.Passage`. Before the first pass of a kind the model runs once with its
graph whole (:class:`bpfree.mechanisms.survey.Survey`), which shows what lies below which error.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from bpfree.arguments import holders_in
from bpfree.draw import derived_seed
from bpfree.error_values import replace_errors
from bpfree.errors import (
    BpfreeWarning,
    ErrorPlacementError,
    OptionError,
    StateError,
    StreamingError,
    TargetsError,
    VerificationError,
    nearest,
)
from bpfree.feedback import Feedback
from bpfree.layout import ERROR, Place, lay_out, tapped
from bpfree.mechanisms.backward_hooks import with_backward_hooks
from bpfree.mechanisms.base import Mechanism, Rule, not_a_tensor, not_reached, reached_twice, running_again
from bpfree.mechanisms.delivery import Delivery, Dispatch, ErrorAlone, Layout, Pending
from bpfree.mechanisms.final_activation import FinalActivation
from bpfree.mechanisms.inspection import ExactDeparture, Inspection
from bpfree.mechanisms.pass_state import PassStack, PassState
from bpfree.mechanisms.passage import Cut, Passage, Reached, Recut, Run, modules_of
from bpfree.mechanisms.side_terms import has_nodes_in, joined_to_taps, refused
from bpfree.mechanisms.survey import Survey, SurveyPass, error_key, errors_of
from bpfree.mechanisms.trial import kind_of_call
from bpfree.mechanisms.untaught import warn_of_input_gradients
from bpfree.mechanisms.ways import Ways
from bpfree.module_tree import ModuleTree, followed, newcomers
from bpfree.per_thread import PerThread
from bpfree.plan import Plan
from bpfree.projection import NoFeedback, Projection, Projector, projection
from bpfree.segments import Reach, Segments
from bpfree.sites import Site, product
from bpfree.state import key_of, name_of
from bpfree.tabulate import fold_names
from bpfree.tap_values import put, take, tensors
from bpfree.taps import nothing_to_tap
from bpfree.verification.finding import Finding
from bpfree.verification.laws import compare_outputs


@dataclass(frozen=True)
class DirectRule(Rule):
    """A rule that gives every tap a signal at once, without the weights between the tap and the output.

    A rule of your own overrides :meth:`vector` (what is projected) or, for anything else, :meth:`signals`.

    Args:
        feedback: How the feedback matrices are drawn, or any callable projector ``(error, sites) -> signals``; None
            projects nothing.
    """

    feedback: Feedback | Projector | None = field(default_factory=Feedback, kw_only=True)

    def mechanism(self, plan: Plan) -> Mechanism:
        """Cut the graph at every tap and broadcast the error."""
        return DirectMechanism(self, plan)

    @property
    def needs_error(self) -> bool:
        """Whether signals depend on the error; where they do not, streaming sends them in the forward pass."""
        return True

    def vector(self, delivery: Delivery) -> Tensor:
        """The vector ``(N, c)`` that is projected; the error itself unless a rule says otherwise."""
        return delivery.error

    def signals(self, delivery: Delivery) -> Sequence[Tensor | None]:
        """One teaching signal ``(N, n_l)`` a tap, in the order of ``delivery.sites``; None trains nothing there."""
        return delivery.project(self.vector(delivery), delivery.sites)


class DirectMechanism(Mechanism):
    """Hooks, forward record and feedback of one direct rule on one model.

    Attributes:
        sites: The taps that the last forward pass reached.
        ways: Which ways forward passes go.
        further: The mechanisms of the second error and those behind it, by the errors' names: each has feedback of its
            own, and no hooks.
    """

    rule: DirectRule
    is_given_error = True

    def __init__(self, rule: DirectRule, plan: Plan) -> None:
        super().__init__(rule, plan)
        if not plan.taps and not plan.part:
            raise nothing_to_tap(plan.model)
        self.feedback = projection(rule.feedback, plan.seed)
        self.sites: tuple[Site, ...] = ()
        self.ways = Ways(plan, self._again)
        self.further = nn.ModuleDict()
        self._segments: dict[Any, Segments] = {}
        self._shown: Segments | None = None
        self._layout: Layout | None = None
        self._surveys: dict[Any, Survey] = {}
        # What passes have shown: the axes of channels, and the taps whose tokens are not the error's.
        self._channels: dict[str, int] = {}
        self._lengths: set[str] = set()
        self._calls = PerThread(PassStack)
        # How the last pass was cut; None where it was not.
        self._recut: Recut | None = None
        # Whether an inspection's cut pass is under way, in which no rule is active.
        self._inspected = False
        self._cuts: dict[str, RemovableHandle] = {}
        # Of a place with several errors its first one, when a pass has shown it.
        self.first_error = plan.error_name
        self._finals: dict[str, FinalActivation | None] = {}
        self._left_alone: list[str] = []
        self._targets: Tensor | None = None
        self._note_modules()
        for name in list(plan.errors)[1:]:
            self.of_error(name, first=False)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy, or a pickle, has of it: not what passes have left or shown, which it finds again."""
        return {**self.__dict__, "_surveys": {}, "_layout": None, "_recut": None, "_tree": None, "_known": {}}

    def of_error(self, name: str, *, first: bool) -> DirectMechanism:
        """The mechanism with the feedback for the error of this name: this one for the first, one of its own else."""
        if first:
            return self
        key = key_of(name)
        if key not in self.further:
            seed = derived_seed(self.plan.seed, "error", name)
            plan = replace(self.plan, errors={name: self.plan.error_module}, seed=seed)
            self.further[key] = self.rule.mechanism(plan)
        found = self.further[key]
        assert isinstance(found, DirectMechanism)
        return found

    # -- hooks ---------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Put hooks on the model, on every tap and on the modules where errors are taken."""
        # Bound methods and partials of them: a deep copy of the model then has a deep copy of the rule.
        plan = self.plan
        add = self._handles.append
        # Before what other hooks make of the arguments: in a second run they do so again.
        add(plan.model.register_forward_pre_hook(self._hear, prepend=True, with_kwargs=True))
        add(plan.model.register_forward_pre_hook(self._enter, with_kwargs=True))
        for name, module in plan.taps.items():
            if module not in plan.errors.values():
                self._cuts[name] = module.register_forward_hook(partial(self._cut, name))
                add(self._cuts[name])
        for name, module in plan.errors.items():
            add(module.register_forward_hook(partial(self._leave, name)))
        add(plan.model.register_forward_hook(self._end, with_kwargs=True, always_call=True))

    def remove(self) -> None:
        """Take the hooks out and forget the forward pass and its targets."""
        super().remove()
        self._cuts.clear()
        for call in self._calls().calls:
            _close(call)
        self._calls().calls.clear()
        self.ways.forget()
        self._targets = None

    def _hear(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        stack = self._calls()
        if stack.top is not None and stack.top.again and not stack.top.entered:
            return
        self._drop_interrupted()
        if self.active:
            stack.heard = args, kwargs
            self.ways.hear(args, kwargs)

    @contextmanager
    def paused(self) -> Generator[None]:
        """Within this context a forward pass is plain autograd."""
        self._drop_interrupted()
        with super().paused():
            yield

    def _drop_interrupted(self) -> None:
        """End the calls that Ctrl-C has ended: behind a stream's, nothing would have a graph."""
        for lost in self._calls().drop_interrupted():
            _close(lost)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        stack = self._calls()
        top = stack.top
        if top is not None and top.again and not top.entered:
            top.entered = True
            return None
        compiling, active, again = torch.compiler.is_compiling(), self.active, self.recomputing()
        call = PassState(frame=None if compiling else sys._getframe(1))
        # The second run of a checkpoint is no training pass of its own, unless the first one had no gradients.
        call.counts = active and (not again or stack.ungraded)
        if not again:
            stack.ungraded = not active
        if active:
            if not compiling:
                if self._tree is None:  # a copy
                    self._note_modules()
                elif not self.plan.part and self._tree.has_changed():
                    self._follow_model()
                self._let_cuts_be_last()
                warn_of_input_gradients((*args, *kwargs.values()), self._tell_once, self.rule)
                self._survey(call, *stack.heard)
            call.run = self.opened(call.survey)
        stack.calls.append(call)
        self._begin(call, (args, kwargs))
        run = call.run
        if not compiling and active:
            self._recut = run.recut() if isinstance(run, Passage) else None
        return run.enter(args, kwargs) if isinstance(run, Passage) else None

    def opened(self, survey: Survey | None) -> Run:
        """A run for a pass that begins."""
        ready = not self.rule.needs_error and self._targets is not None
        aside = frozenset() if survey is None else self.left_aside(survey)
        dispatch = self._dispatch if ready else None
        return self.ways.open(self._layout, dispatch, aside, survey or Survey(frozenset(), {}))

    def _follow_model(self) -> None:
        """Put the hooks where they belong in a model whose modules have changed, and say so."""
        before, plan = self._known, followed(self.plan)
        now = dict(plan.model.named_modules())
        came, gone = newcomers(before, now), newcomers(now, before)
        self.replan(plan)
        taps = f"Taps are now {', '.join(fold_names(plan.taps))}."
        warnings.warn(
            f"the model has changed since {self.rule} was attached: {_some(came)} came"
            f"{f', {_some(gone)} went' if set(gone) - set(came) else ''}. {taps} To tap other modules, or where an "
            "optimizer steps the feedback, detach and attach again.",
            BpfreeWarning,
            stacklevel=2,
        )

    def replan(self, plan: Plan) -> None:
        """Serve the model as ``plan`` has it, with the feedback that is there."""
        Mechanism.remove(self)
        self._cuts.clear()
        self.plan = plan
        self.ways.replan(plan)
        self._layout, self._shown = None, None
        for known in (self._segments, self._surveys, self._finals):
            known.clear()
        self._note_modules()
        self.install()

    def _note_modules(self) -> None:
        self._tree: ModuleTree | None = ModuleTree(self.plan.model)
        self._known = dict(self.plan.model.named_modules())

    def _let_cuts_be_last(self) -> None:
        """Let hooks that came after this rule see a tap's output with its graph: losses of theirs reach its segment."""
        for name, handle in self._cuts.items():
            hooks = self.plan.taps[name]._forward_hooks
            if next(reversed(hooks)) != handle.id:
                hooks.move_to_end(handle.id)  # type: ignore[attr-defined]

    def _abandon(self, call: PassState) -> None:
        """Let the pass under way be plain autograd."""
        _close(call)
        call.run = None

    @contextmanager
    def stored(self) -> Generator[None]:
        """Within this context a pass stores its graph and leaves it to autograd, for whoever looks into it."""
        targets = self._targets
        try:
            with self.ways.stored():
                yield
        finally:
            self._targets = targets

    @contextmanager
    def running(self, state: PassState) -> Generator[None]:
        """Within this context the model's next call is a second run, which goes as ``state`` says."""
        calls = self._calls().calls
        calls.append(state)
        try:
            with running_again():
                yield
        finally:
            del calls[calls.index(state) :]

    @contextmanager
    def recutting(self, run: Run | None) -> Generator[None]:
        """Within this context a checkpoint's second run is cut as ``run`` is."""
        before = self._recut, self._inspected
        self._recut, self._inspected = (run.recut(), True) if isinstance(run, Passage) else (None, False)
        try:
            yield
        finally:
            self._recut, self._inspected = before

    def _again(self, aside: frozenset[str], run: Run, call: Any) -> Tensor:
        """Run the model on (args, kwargs) as far as the error's place, cut as ``run`` says; return the output there."""
        run.aside = aside
        if not self._handles:
            raise StreamingError(
                "the rule was detached between the model and loss.backward(), which under streaming runs the model "
                "again: detach behind it."
            )
        args, kwargs = call
        try:
            with self.running(PassState(run=run, again=True)):
                self.plan.model(*args, **kwargs)
        except Reached as reached:
            return reached.output
        raise not_reached(self.plan.error_name)

    def _begin(self, state: PassState, call: Any) -> None:
        """Make ready for the pass ``state`` on ``call``, (args, kwargs); without a run it is not the rule's."""

    def _cut(self, name: str, module: nn.Module, args: Any, output: Any) -> Any:
        call = self._calls().top
        if call is None:
            return self._outside_a_pass(name, output)
        run = call.run
        if run is None:
            return None
        if len(run.left) == len(self.plan.errors):
            if isinstance(run, Passage):
                self._above_error(name)
            return None
        place = run.counted(name)
        if place in run.aside:
            return None
        key = self.plan.tensor_keys.get(name)
        tensor = take(output, key, name)
        if run.teaching:
            return put(output, key, run.again(name, tensor))
        if self.plan.model is not module and not torch.compiler.is_compiling():
            tensor = with_backward_hooks(module, args, tensor)
        return put(output, key, run.cut(name, place, tensor))

    def _outside_a_pass(self, name: str, output: Any) -> Any:
        if not self.active and not self._inspected:
            return None
        if self.recomputing():
            # A checkpointed segment must be cut again, or it would save other tensors than the first time.
            if self._recut is None:
                return None
            key = self.plan.tensor_keys.get(name)
            return put(output, key, self._recut(name, take(output, key, name)))
        self._recut = None  # nothing is cut here, and so nothing in a checkpoint's second run
        self._tell_once(
            "outside",
            f"tap {name!r} was reached without the model that {self.rule} is attached to: a part of the model was "
            "called alone, or model.forward() in place of model(), and trains by plain backpropagation. Call the model "
            "itself, attach the rule to that part, or say attachment.paused() where this is meant.",
        )
        return None

    def _above_error(self, name: str) -> None:
        # Default taps above error_at are left alone: what lies there is exact.
        if self.plan.explicit:
            raise ErrorPlacementError(
                f"tap {name!r} was reached after error_at={self.plan.error_name!r}. What lies above error_at is "
                "trained exactly and cannot hold a tap: leave that tap out, or take the error further up."
            )

    def _leave(self, place: str, module: nn.Module, args: Any, output: Any) -> Any:
        call = self._calls().top
        if call is None or call.run is None:
            return None
        run = call.run
        if not isinstance(run, Passage):
            return run.leave_again(place, output)
        # Whatever is wrong is said once: _end runs although this raises.
        reached = place in run.left
        run.left.add(place)
        if len(run.left) == len(self.plan.errors):
            run.close()
        found = errors_of(output)
        if not found:
            raise not_a_tensor(self.plan, output)
        if reached:
            raise reached_twice(place)
        alone = len(self.plan.errors) == 1 and isinstance(output, Tensor)
        if not alone:
            self._require_plain_way()
        left: dict[str, Tensor] = {}
        for path, tensor in found.items():
            first = not left and place == self.plan.error_name
            left[path] = self._left(call, run, error_key(place, path), tensor, first=first, alone=alone)
        return left[""] if alone else replace_errors(output, left)

    def _require_plain_way(self) -> None:
        if self.plan.streaming or self.plan.window > 1:
            raise OptionError(
                f"streaming=True and window={self.plan.window}: with several errors every signal takes the plain way. "
                "Leave these options out, or take one error alone (error_at=)."
            )

    def _left(
        self, call: PassState, passage: Passage, name: str, output: Tensor, *, first: bool, alone: bool
    ) -> Tensor:
        """``output``, where the error ``name`` is taken, as it leaves the rule's hands."""
        left = self._broadcast(call, passage, name, output, first=first, alone=alone)
        call.exits[name] = left
        # Of a stage where nothing learns the others still want the error.
        return left.detach().requires_grad_() if self.plan.part and not left.requires_grad else left

    def _end(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        stack = self._calls()
        call = stack.top
        if call is None or (call.again and not isinstance(call.run, Passage)):
            return None
        try:
            return self._finished(call, args, kwargs, output)
        finally:
            _close(call)
            if not call.again:
                stack.calls.pop()

    def _finished(self, call: PassState, args: Any, kwargs: Any, output: Any) -> Any:
        passage = call.run
        # Without an output the forward pass raised: that error goes to the user, not ours.
        if not isinstance(passage, Passage) or output is None:
            return None
        if not passage.left:
            raise not_reached(self.plan.error_name)
        passage.ended(output)
        exchanged = self._exchanged_term(call, passage)
        if exchanged is not None:
            output = self._exchange_terms(output, exchanged, (args, kwargs))
        self._note_segments(call, passage)
        if call.first and call.survey is not None:
            self._compare_outputs(call, call.survey)
        return output

    def _compare_outputs(self, call: PassState, survey: Survey) -> None:
        """Raise VerificationError if the rule has changed what the model computes."""
        changed = compare_outputs(call.left, survey.outputs)
        # Without the numbers: they are needed for one comparison.
        survey.outputs.clear()
        if changed and not call.again:
            raise VerificationError(f"{changed[0]} No weight has learned. attach(..., verify=False) goes on.")

    # -- the error -------------------------------------------------------------------------------------------------

    def _broadcast(
        self, call: PassState, passage: Passage, name: str, output: Tensor, *, first: bool, alone: bool
    ) -> Tensor:
        tap = passage.ends_in_tap(output)
        if alone and tap is not None and tap == len(passage.names) - 1:
            # The model ends in a tap (a final sigmoid, say): the error itself is that tap's exact gradient.
            output, tap = passage.uncut(), None
        elif tap is not None:
            output = passage.outputs[tap]
        below = [number for number in self._below(call, passage, name, alone=alone) if number != tap]
        call.left[name] = output
        if not below:
            if self.plan.part or not alone:
                return output
            raise self._no_tap_below(call)
        self._require_learning_behind(passage, output, alone=alone)
        sender = self.of_error(name, first=first)
        if first:
            self.first_error = name
        layout = sender.laid_out(passage, name, output, below, call.survey)
        sender.sites = layout.sites
        if call.signals is not None:
            exact = ExactDeparture([call.signals.pop(passage.places[number], None) for number in below])
            return passage.leave(output, exact, below, just_in_time=False)
        final = self._final(name, output)
        outputs = [passage.outputs[i] for i in below] if passage.outputs else ()
        behind = None if final is None else (final, output.detach())
        dispatch = sender._dispatch(layout, outputs, call, behind)
        call.pending[name] = (dispatch.pending, layout.c)
        if self._sends_nothing and type(passage) is Cut:
            # A gradient of nothing would still call the hooks of everything below.
            return passage.leave(output, ErrorAlone(dispatch), (), just_in_time=False)
        return passage.leave(output, dispatch, below, just_in_time=layout.just_in_time)

    def _no_tap_below(self, call: PassState) -> ErrorPlacementError:
        if call.survey is None or not call.survey.places:
            return ErrorPlacementError(
                f"no tap was reached before {self.plan.where}. Name taps that the forward pass runs through below it."
            )
        return ErrorPlacementError(
            f"{_some(call.survey.places)} were reached, and {self.plan.where} does not depend on what they hand on: "
            "the model takes it out of the graph, or differentiates within its own forward pass, as for forces. Tap "
            "other modules (taps=...), or train it by bpfree.BP()."
        )

    @property
    def _sends_nothing(self) -> bool:
        return type(self.feedback) is NoFeedback and type(self.rule).signals is DirectRule.signals

    def _below(self, call: PassState, passage: Passage, name: str, *, alone: bool) -> Sequence[int]:
        """The numbers of the taps below an error: those that the survey saw there, and those that it did not see."""
        survey = call.survey
        if alone or survey is None or name not in survey.below:
            return range(len(passage.places))
        others = survey.places - survey.below[name]
        return [number for number, place in enumerate(passage.places) if place not in others]

    def _require_learning_behind(self, passage: Passage, output: Tensor, *, alone: bool) -> None:
        if alone and not passage.learns(output) and not self._is_frozen_behind(passage.names[-1]):
            raise ErrorPlacementError(
                f"nothing that learns lies between the last tap, {passage.names[-1]!r}, and {self.plan.where}: the tap "
                "would cut the output layer off from its exact gradient. Leave that tap out."
            )

    def _is_frozen_behind(self, tap: str) -> bool:
        """Whether parameters registered behind a tap are not to learn: the output layer's, most probably."""
        modules = iter(self.plan.model.named_modules())
        for name, _ in modules:
            if name == tap:
                break
        return any(not p.requires_grad for _, module in modules for p in module.parameters(recurse=False))

    def laid_out(
        self, passage: Passage, error_name: str, output: Tensor, below: Sequence[int], survey: Survey | None
    ) -> Layout:
        """The layout of a pass with these taps below the error at ``output``; found once for the same shapes."""
        compiling = torch.compiler.is_compiling()
        names, places = [passage.names[i] for i in below], [passage.places[i] for i in below]
        shapes, formats = [passage.shapes[i] for i in below], [passage.formats[i] for i in below]
        key = (output.shape, output.dtype, output.device, tuple(places), shapes, formats)
        known = self._layout
        if not compiling and known is not None and key == known.key:
            return known
        if survey is not None:
            self._channels |= {call: axis for call, axis in survey.channels.items() if axis is not None}
        error = Place(ERROR, ERROR, tuple(output.shape), self._channels.get(error_name))
        rows, sites = lay_out(self.plan, error, tapped(names, places, shapes, self._channels), self._lengths)
        # One signal for all taps is made at once. A compiled graph cannot hold hooks on tensors inside it.
        several = isinstance(self.feedback, Projection) and self.feedback.kinds(sites) > 1
        just_in_time = not compiling and self.plan.window == 1 and (several or self.plan.streaming)
        like = _weights_like(self.plan.model, output)
        c = product(size for axis, size in enumerate(output.shape) if axis not in rows.axes)
        # A stage of a pipeline does not hear of an error that no rule needs.
        known_error = not self.plan.part or self.rule.needs_error
        layout = Layout(key, rows, sites, tuple(formats), c, just_in_time, like, known_error)
        if not compiling:  # a compiled pass has a layout of its own: it delivers in another way
            self._layout = layout
        return layout

    def sites_below(self, found: SurveyPass, survey: Survey, name: str, below: Sequence[int]) -> Sequence[Site]:
        """The sites of the taps of these numbers, below an error, as the passes behind a survey will lay them out."""
        shapes, channels = [found.taps[number].shape for number in below], survey.channels
        names, places = [found.names[number] for number in below], [found.places[number] for number in below]
        error = Place(ERROR, ERROR, tuple(found.errors[name].shape), channels[name])
        _, sites = lay_out(self.plan, error, tapped(names, places, shapes, channels), set())
        return sites

    def check_estimates(self, call: Any, sites: Sequence[Site]) -> list[Finding]:
        """Try what an estimating pass relies on, for a rule that has one."""
        return []

    def _final(self, name: str, output: Tensor) -> FinalActivation | None:
        """The softmax or sigmoid before which this error is taken, unless the user has named the error's place."""
        if self.plan.placed:
            return None
        if not torch.compiler.is_compiling() and output.grad_fn is not None:
            self._finals[name] = FinalActivation.of(output)
        final = self._finals.get(name)
        if final is not None and not torch.compiler.is_compiling():
            self._tell_once(
                "final",
                f"the model ends in a {final.kind}: {self.rule} takes the error before it, as the rules' sources do. "
                f'To take it behind the {final.kind} say error_at="".',
            )
        return final

    def _dispatch(
        self,
        layout: Layout,
        outputs: Sequence[Tensor] = (),
        call: PassState | None = None,
        behind: tuple[FinalActivation, Tensor] | None = None,
    ) -> Dispatch:
        self.feedback.prepare(layout.sites, layout.c, layout.like)
        pending = self._begun(call or PassState(), layout, outputs)
        # A recomputed pass must not take what was given for the backward pass under way.
        targets = None if self.recomputing() else self.take_targets()
        return Dispatch(self, layout, pending, targets, behind)

    def take_targets(self) -> Tensor | None:
        """The targets that were given and not used, which then are."""
        targets, self._targets = self._targets, None
        return targets

    def _begun(self, state: PassState, layout: Layout, outputs: Sequence[Tensor]) -> Pending:
        """What this forward pass leaves for its error; mechanisms that learn add to it."""
        return Pending(layout.sites)

    def passed(self, pending: Pending, number: int, output: Tensor, error: Tensor) -> None:
        """Hear of the output of tap ``number`` where it was not there before the error ``(N, c)``."""

    def learn(self, pending: Pending, error: Tensor) -> None:
        """Let the feedback learn, before it projects the error ``(N, c)``; fixed feedback does not."""

    def targets(self, targets: Tensor | Mapping[str, Tensor]) -> None:
        """Keep the targets of the next (or the current) forward pass for its backward pass."""
        if self._switches().pauses:
            return
        if isinstance(targets, Tensor):
            self._targets = targets
            return
        known = {self.first_error: self, **{name_of(key): found for key, found in self.further.items()}}
        for name, given in targets.items():
            if name not in known:
                raise TargetsError(
                    f"targets are given for {name!r}, and there is no such error. {nearest(name, known)}"
                )
            sender: Any = known[name]
            sender.targets(given)

    # -- other losses ----------------------------------------------------------------------------------------------

    def _exchanged_term(self, call: PassState, passage: Passage) -> Callable[[Tensor], Tensor | None] | None:
        """What stands in the place of a side term when the pass has ended; None where all of them may stay."""
        if passage.soft_taps:
            exits = {left.grad_fn for left in call.exits.values()}
            return partial(joined_to_taps, passage.soft_taps, exits, passage.fetching)
        if self.plan.window > 1 and call.survey is not None and call.survey.sides:
            exits = {left.grad_fn for left in call.exits.values()}
            inner = Reach.of(*passage.outputs, *call.left.values()).inner
            return lambda term: refused(term) if has_nodes_in(term, inner, exits) else None
        return None

    def _exchange_terms(self, output: Any, exchanged: Callable[[Tensor], Tensor | None], given: Any) -> Any:
        """Exchange the side terms that the model returns, or keeps on itself or in its arguments."""
        for path, term in list(tensors(output)):
            found = exchanged(term) if term.requires_grad else None
            output = output if found is None else put(output, path, found)
        for holder in (*self.plan.state.holders, *holders_in(*given)):
            for key, term in list(holder.tensors):
                # One that keeps its gradient is to be looked at: another tensor in its place would have none.
                found = exchanged(term) if term.requires_grad and not term.retains_grad else None
                if found is not None:
                    holder.replace(key, found)
        return output

    # -- surveys ---------------------------------------------------------------------------------------------------

    def _survey(self, state: PassState, args: Any, kwargs: Any) -> None:
        """Note what the whole graph of such a pass shows; every kind of pass is looked at once."""
        if not self.plan.verify or self.plan.part or self.recomputing():
            return
        kind = kind_of_call(self.plan.model, args, kwargs)
        state.first = kind not in self._surveys
        if state.first:
            if any(map(is_lazy, self.plan.parameters)):
                state.first = False
                return
            self._inspect(kind, (args, kwargs))
        state.survey = self._surveys[kind]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _inspect(self, kind: Any, call: Any) -> None:
        inspection = Inspection(self, call)
        survey = self._surveys[kind] = inspection.survey
        self._finals.update(survey.finals)
        if survey.returned and self.plan.streaming:
            self._tell_once(
                "sides",
                f"besides what comes of {self.plan.where} the model returns tensors that were made below it: with "
                "streaming=True no graph is stored there, and a loss of them teaches nothing below. Train without "
                "streaming; if they are only looked at, all is well.",
            )
        if inspection.unheard:
            self._tell_once(
                "backward hooks",
                f"full backward hooks on {_some(inspection.unheard)} do not see what they would under backpropagation: "
                "no gradient passes a tap, and with window= one comes for every step. Put the hooks on taps, or on "
                "modules between a tap and a layer with weights.",
            )
        self._left_alone = self._describe_left_alone(survey)
        inspection.require_right()

    def left_aside(self, survey: Survey) -> frozenset[str]:
        """The calls of taps that are left alone."""
        return survey.unreached | self._flat(survey) if survey.flat else survey.unreached

    def _flat(self, survey: Survey) -> frozenset[str]:
        """Those of them that only the output's own non-linearity is behind; a tap there must be asked for."""
        if self.plan.explicit:
            return frozenset()
        # A checkpoint's second run knows a tap's module, and not which of its calls it is.
        elsewhere = modules_of(survey.places - survey.flat)
        flat = {tap for tap in survey.flat if tap.partition("#")[0] not in elsewhere}
        return frozenset(tap for tap in flat if not self._is_frozen_behind(tap))

    def _describe_left_alone(self, survey: Survey) -> list[str]:
        reasons = {
            "no error lies above it, and what lies below learns from its own loss": survey.unused,
            "no layer follows before the output, whose own layer learns exactly": self._flat(survey),
            "it runs where no graph is built, and so no signal can enter": survey.graphless,
        }
        return [f"Left alone, {_some(taps)}: {reason}." for reason, taps in reasons.items() if taps]

    # -- what it looks like ----------------------------------------------------------------------------------------

    def _note_segments(self, call: PassState, passage: Passage) -> None:
        """Note which layers learn from which signal, for the attachment's table."""
        if torch.compiler.is_compiling():
            return
        kind = (tuple(passage.places), tuple(call.left), self.plan.learning)
        if kind not in self._segments:
            ends = {name: passage.ends(output) for name, output in call.left.items()}
            below = next(iter(ends.values()))[:-1]
            left = {name: found[-1] for name, found in ends.items()}
            self._segments[kind] = Segments.of(self.plan, passage.places, below, left)
        self._shown = self._segments[kind]

    def table(self) -> tuple[list[str], list[list[str]], list[str]]:
        """A row for each tap: its shape, its feedback, and the layers that learn from its signal."""
        segments = self._shown
        if segments is None:
            names = ", ".join(fold_names(self.plan.taps))
            later = "Shapes are known after the first forward pass (or with example_inputs=)."
            return [], [], [f"taps: {names}", later]
        rows = [self._row(place, layers) for place, layers in segments.learners.items()]
        rows += [[name or "(output)", "", "exact gradient", layers] for name, layers in segments.exact.items()]
        remarks = [*self.ways.describe(), *self._left_alone, *segments.remarks]
        return ["tap", "shape", "feedback", "learns from it"], rows, remarks

    def _row(self, place: str, layers: str) -> list[str]:
        """What the table says of one tap; with several errors it has feedback for each above it."""
        senders: list[Any] = [self, *self.further.values()]
        known = [(sender, site) for sender in senders for site in sender.sites if site.name == place]
        shape = "x".join(map(str, ("N", *known[0][1].features))) if known else ""
        return [place, shape, " + ".join(sender.feedback.describe(site) for sender, site in known), layers]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if isinstance(self.feedback, Projection) and not self.feedback.feedback.shared:
            start = f"{prefix}feedback."
            saved = {name_of(key.removeprefix(start)) for key in state_dict if key.startswith(start)}
            # A matrix is kept under its tap's name, most with the width behind it.
            taps = {name.rpartition(":")[0] or name for name in saved - self.feedback.numbers.keys()}
            unknown = taps - self.plan.taps.keys()
            if unknown:
                raise StateError(f"the state is for taps that this model does not have: {', '.join(sorted(unknown))}.")
        start = f"{prefix}further."
        for key in {key.removeprefix(start).partition(".")[0] for key in state_dict if key.startswith(start)}:
            self.of_error(name_of(key), first=False)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _close(call: PassState) -> None:
    """Put back what the pass has changed around it."""
    if isinstance(call.run, Passage):
        call.run.close()


def _some(names: Collection[str]) -> str:
    """A few of these names, for a message."""
    first = sorted(names)[:3]
    return ", ".join(map(repr, first)) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _weights_like(model: nn.Module, output: Tensor) -> Tensor:
    """An empty tensor with the precision of the model's weights on the device of its output."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return torch.empty(0, dtype=parameter.dtype, device=output.device)
    return output.new_empty(0)
