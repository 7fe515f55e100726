"""The mechanism of the direct rules: the graph is cut at every tap, and the error sends each its signal.

A forward hook at a tap takes the output h, with the graph of its own segment, and hands on ``h.detach()``, which
requires no gradient, so that autograd never forms W^T delta. A hook where the error is taken gives the output a graph
of its own: its gradient, the error, makes every tap's signal (:mod:`bpfree.mechanisms.direct.connect`). A
``TrainingPass`` keeps the graphs, or the arguments, that the segments need to learn
(:mod:`bpfree.mechanisms.direct.forward_pass`). Before the first pass of a kind the model runs once with its graph
whole (:mod:`bpfree.mechanisms.direct.first_look`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bpfree.axes.sites import Site
from bpfree.errors import StreamingError, VerificationError
from bpfree.mechanisms.base import being_exported, exception_handled, not_reached, running_again
from bpfree.mechanisms.direct.alternation import EVERY_TAP, Alternation, Phase
from bpfree.mechanisms.direct.backward_hooks import with_backward_hooks
from bpfree.mechanisms.direct.checkpointed_taps import CheckpointedTaps
from bpfree.mechanisms.direct.choose_pass import PassChooser
from bpfree.mechanisms.direct.connect import connect_error, take_errors, tap_above_error
from bpfree.mechanisms.direct.delivery import Layout, PassMemory
from bpfree.mechanisms.direct.errors_feedback import ErrorsFeedback
from bpfree.mechanisms.direct.exchange_terms import exchange_terms
from bpfree.mechanisms.direct.final_activation import FinalActivation
from bpfree.mechanisms.direct.first_look import FirstLook
from bpfree.mechanisms.direct.forward_pass import TappedPass, TrainingPass
from bpfree.mechanisms.direct.layouts import Layouts
from bpfree.mechanisms.direct.pass_state import PassStack, PassState
from bpfree.mechanisms.direct.rule_signals import RuleSignals
from bpfree.mechanisms.direct.survey import NO_SURVEY, Survey
from bpfree.mechanisms.direct.tap_table import TapTable
from bpfree.mechanisms.function_transforms import refuse_transform_within, refuse_transforms_of_pass
from bpfree.mechanisms.no_gradient_warnings import warn_of_input_gradients
from bpfree.mechanisms.reentrant_checkpoints import reentrant_part, watch_reentrant_parts
from bpfree.per_thread import PerThread
from bpfree.plan import Plan
from bpfree.rerun.checkpoints import checkpoints_around, hooks_on_saving
from bpfree.rerun.stop import StopForward
from bpfree.tap_values import put, take
from bpfree.verification.finding import NOT_LEARNED, Finding
from bpfree.verification.laws import compare_outputs

if TYPE_CHECKING:
    from bpfree.mechanisms.direct.rule import DirectRule


class DirectMechanism(ErrorsFeedback):
    """Hooks, passes and feedback of one direct rule on one model.

    Attributes:
        passes: Chooses the kind of each pass.
        layouts: Makes the layouts of passes.
        first_look: Inspects the first pass of each kind.
        alternation: Says which taps each step cuts; None where every step cuts all.
        finals: For each error, the softmax or sigmoid that it is taken before, as passes have shown.
    """

    rule: DirectRule
    is_given_error = True

    def __init__(self, rule: DirectRule, plan: Plan) -> None:
        super().__init__(rule, plan)
        self.passes = PassChooser(plan, self._rerun)
        self.layouts = Layouts(self)
        self.first_look = FirstLook(self)
        self.finals: dict[str, FinalActivation | None] = {}
        self._table = TapTable(self)
        self._calls = PerThread(PassStack)
        self._in_checkpoints = CheckpointedTaps(self)
        self.alternation = Alternation(plan) if plan.alternate > 1 else None

    # -- in and out ----------------------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Take the hooks out and forget the forward pass and its targets."""
        super().remove()
        for call in self._calls().calls:
            _close(call)
        self._calls().calls.clear()
        self.passes.forget()
        self._targets = None

    def replan(self, plan: Plan) -> None:
        """Serve the model as ``plan`` describes it, and keep the feedback."""
        self.passes.replan(plan)
        if self.alternation is not None:
            self.alternation.plan = plan
        self.layouts.last = None
        self.finals.clear()
        self.first_look.forget()
        self._table.forget()
        super().replan(plan)

    # -- a pass begins -------------------------------------------------------------------------------------------------

    def _note_arguments(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        stack = self._calls()
        if stack.top is not None and stack.top.again and not stack.top.entered:
            return
        self.put_right()
        if self.active:
            refuse_transforms_of_pass(self.rule, (args, kwargs))
            stack.arguments = args, kwargs
            self.passes.note_arguments(args, kwargs)

    def put_right(self) -> None:
        """End the calls that Ctrl-C has interrupted: after a streaming pass, nothing would have a graph."""
        for lost in self._calls().drop_interrupted():
            _close(lost)

    def _begin_pass(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        stack = self._calls()
        top = stack.top
        if top is not None and top.again and not top.entered:
            top.entered, top.around, top.handled = True, checkpoints_around(), exception_handled()
            return None
        compiling, active, again = torch.compiler.is_compiling(), self.active, self.recomputing()
        call = PassState(is_compiled=True) if compiling else PassState(sys._getframe(1), checkpoints_around())
        # The second run of a checkpoint is no training pass of its own, unless the first run had no gradients: with
        # re-entrant autograd, which sets no hooks on saved tensors.
        call.counts = active and (not again or (stack.ungraded and call.around.second is None))
        if not compiling:
            call.handled = exception_handled()
        if active:
            if not compiling:
                self._look_at_model()
                watch_reentrant_parts()  # in a copy of the model too, which nobody has attached
                warn_of_input_gradients((*args, *kwargs.values()), self.tell_once, self.rule)
                self.first_look.at(call, *stack.arguments)
            call.tapped = self.start_pass(call.survey, self._phase(call))
        if not again:  # after the first look, which may run the model without gradients
            stack.ungraded = not active
        stack.calls.append(call)
        if not being_exported():
            self._on_begin(call, (args, kwargs))
        tapped = call.tapped
        return tapped.enter(args, kwargs) if isinstance(tapped, TrainingPass) else None

    def _phase(self, call: PassState) -> Phase:
        """Return which taps the pass that begins cuts."""
        if self.alternation is None:
            return EVERY_TAP
        return self.alternation.of_pass(counts=call.counts and not self._fixed)

    def start_pass(self, survey: Survey | None, phase: Phase) -> TappedPass:
        """Make the pass that begins, cut as ``phase`` says."""
        ready = not self.rule.needs_error and self._targets is not None
        aside = frozenset() if survey is None else self.first_look.left_alone(survey)
        handler = self.make_handler if ready else None
        tapped = self.passes.start(self.layouts.last, handler, aside, survey or NO_SURVEY, phase)
        tapped.aside, tapped.phase = aside, phase
        return tapped

    def _on_begin(self, state: PassState, call: Any) -> None:
        """Prepare for the pass ``state`` on ``call``, (args, kwargs). Without ``tapped`` it is not the rule's."""

    def _abandon(self, call: PassState) -> None:
        """Let the present pass be plain autograd."""
        _close(call)
        call.tapped = None

    # -- at a tap ------------------------------------------------------------------------------------------------------

    def cut_at_tap(self, name: str, module: nn.Module, args: Any, output: Any, *, alone: bool = False) -> Any:
        """Return what a tap hands on, its output cut; with ``alone`` no checkpoint around it is looked for."""
        calls = self._calls().calls
        call = calls[-1] if calls else None
        compiled = torch.compiler.is_compiling() if call is None else call.is_compiled
        if not (alone or compiled) and hooks_on_saving() is not None:
            return self._in_checkpoints.cut(call, name, module, args, output)
        if call is None:
            return self._tell_of_no_pass(name)
        tapped, plan = call.tapped, self.plan
        if tapped is None:
            return None
        if tapped.reached and len(tapped.reached) == len(plan.errors):
            if plan.explicit and tapped.late is None:
                tapped.late = name
            return None
        place = tapped.count_call(name)
        if place in tapped.aside:
            return None
        refuse_transform_within(self.rule, "tap", name)
        key = plan.tensor_keys.get(name)
        is_plain = key is None and isinstance(output, Tensor) and output.is_floating_point()
        tensor = output if is_plain else take(output, key, name)
        if not (is_plain or compiled):
            self.layouts.note_container(name, output, key)
        if (module._backward_hooks or module._backward_pre_hooks) and module is not plan.model:
            tensor = with_backward_hooks(module, args, tensor)
        handed_on = tapped.cut(name, place, tensor)
        return handed_on if tensor is output else put(output, key, handed_on)

    def _tell_of_no_pass(self, name: str) -> None:
        if not self.active or self.recomputing():
            return
        self.tell_once(
            "outside",
            f"tap {name!r} was reached without the model that {self.rule} is attached to: a part of the model was "
            "called alone, or model.forward() in place of model(), and trains by plain backpropagation. Call the model "
            "itself, attach the rule to that part, or say attachment.paused() where this is meant.",
        )

    def on_reentrant_part(self, function: Callable[..., Any]) -> None:
        """Raise SecondRunError in a pass with a graph: taps cannot cut the part, and it learns nothing behind a cut."""
        self.put_right()  # a pass that Ctrl-C has ended has no part in this
        call = self._calls().top
        if call is None or not torch.is_grad_enabled():
            return
        if call.tapped is not None:
            places = call.tapped.places
            where = f"behind tap {places[-1]!r}" if places else "before the first tap"
        elif call.again:
            where = "in the estimating pass"
        else:  # plain autograd
            return
        raise reentrant_part(function, self.plan.model, where, self.rule)

    # -- where the error is taken --------------------------------------------------------------------------------------

    def _take_errors(self, place: str, module: nn.Module, args: Any, output: Any) -> Any:
        call = self._calls().top
        if call is None or call.tapped is None:
            return None
        if (
            not call.is_compiled
            and hooks_on_saving() is not None
            and checkpoints_around().second_run_within(call.around) is not None
        ):
            return None  # the error was taken in the first run of this part
        tapped = call.tapped
        if not isinstance(tapped, TrainingPass):
            return tapped.reach_again(place, output)
        return take_errors(self, call, tapped, place, output)

    connect = connect_error  # a method: rules that learn override it

    def make_handler(
        self,
        layout: Layout,
        outputs: Sequence[Tensor] = (),
        call: PassState | None = None,
        behind: tuple[FinalActivation, Tensor] | None = None,
        cut: Sequence[int] | None = None,
    ) -> RuleSignals:
        """Make the handler of the error of a pass.

        Args:
            layout: The layout of the pass.
            outputs: The outputs of the taps below the error, where the pass keeps them.
            call: The model's present call; None before the pass, for signals that need no error.
            behind: The softmax or sigmoid before which the error is taken, and its output.
            cut: The numbers of the layout's taps that get signals; None for all.
        """
        self.feedback.prepare(layout.sites, layout.c, layout.like)
        memory = self._remember(call or PassState(), layout, outputs)
        # A recomputed pass must not take the targets that were given for the present backward pass.
        targets = None if self.recomputing() else self.take_targets()
        return RuleSignals(self, layout, layout.receivers(cut), memory, targets, behind)

    def _remember(self, state: PassState, layout: Layout, outputs: Sequence[Tensor]) -> PassMemory:
        """Return what must be remembered of this pass until its error arrives; mechanisms that learn add to it."""
        return PassMemory(layout.sites)

    # -- a pass ends ---------------------------------------------------------------------------------------------------

    def _end_pass(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        stack = self._calls()
        call = stack.top
        if call is None or (call.again and not isinstance(call.tapped, TrainingPass)):
            return None
        try:
            return self._on_end(call, args, kwargs, output)
        finally:
            _close(call)
            if not call.again:
                stack.calls.pop()

    def _on_end(self, call: PassState, args: Any, kwargs: Any, output: Any) -> Any:
        tapped = call.tapped
        # Where the pass has raised, that error goes to the user, not ours.
        if not isinstance(tapped, TrainingPass) or output is None or call.has_raised:
            return None
        if not tapped.reached:
            raise not_reached(self.plan.error_name)
        # Not at the tap itself: if it is called again because the error's module is, that is the cause to name.
        if tapped.late is not None:
            raise tap_above_error(self.plan, tapped.late)
        tapped.on_end(output)
        output = exchange_terms(self.plan, call, tapped, output, (args, kwargs))
        self._table.note(call, tapped, output)
        if call.first and call.survey is not None:
            self._require_same_outputs(call, call.survey)
        return output

    def _require_same_outputs(self, call: PassState, survey: Survey) -> None:
        """Raise VerificationError if the rule has changed what the model computes."""
        changed = compare_outputs(call.errors, survey.outputs)
        # Without the numbers: they are needed for one comparison.
        survey.outputs.clear()
        if changed and not call.again:
            raise VerificationError(f"{changed[0]} {NOT_LEARNED}")

    # -- the error has come --------------------------------------------------------------------------------------------

    def on_tap_output(self, memory: PassMemory, number: int, output: Tensor, error: Tensor) -> None:
        """Called in a rerun with each tap's output, before that tap's signal is made from the error ``(N, c)``."""

    def learn(self, memory: PassMemory, error: Tensor) -> None:
        """Let the feedback learn, before it projects the error ``(N, c)``; fixed feedback does not."""

    # -- other runs ----------------------------------------------------------------------------------------------------

    @contextmanager
    def paused(self) -> Generator[None]:
        """Within this context a forward pass is plain autograd."""
        self.put_right()
        with super().paused():
            yield

    @contextmanager
    def stored(self) -> Generator[None]:
        """Within this context a pass stores its graph and leaves it to autograd, for measurements."""
        targets = self._targets
        try:
            with self.passes.stored():
                yield
        finally:
            self._targets = targets

    @contextmanager
    def running(self, state: PassState) -> Generator[None]:
        """Within this context the model's next call is a rerun with the state ``state``."""
        calls = self._calls().calls
        known = len(calls)
        try:
            calls.append(state)
            with running_again():
                yield
        finally:
            del calls[known:]

    def _rerun(self, aside: frozenset[str], phase: Phase, tapped: TappedPass, call: Any) -> Any:
        """Run the model on ``call``, (args, kwargs), as far as the error's place, and return the output there."""
        tapped.aside, tapped.phase = aside, phase
        if not self._handles:
            raise StreamingError(
                "the rule was detached between the model and loss.backward(), which under streaming runs the model "
                "again: detach behind it."
            )
        args, kwargs = call
        try:
            with self.running(PassState(tapped=tapped, again=True)):
                self.plan.model(*args, **kwargs)
        except StopForward as reached:
            return reached.output
        raise not_reached(self.plan.error_name)

    def check_estimates(self, call: Any, sites: Sequence[Site], *, thorough: bool) -> list[Finding]:
        """Check what an estimating pass relies on, for a rule that has one."""
        return []

    # -- what it looks like, and what is saved -------------------------------------------------------------------------

    def table(self) -> tuple[list[str], list[list[str]], list[str]]:
        """Return the header, a row for each tap, and remarks."""
        return self._table.rows()


def _close(call: PassState) -> None:
    """Put back what the pass has changed around it."""
    if isinstance(call.tapped, TrainingPass):
        call.tapped.close()
