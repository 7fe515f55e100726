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
import warnings
from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bpfree.axes.sites import Site
from bpfree.error_values import replace_errors
from bpfree.errors import (
    BpfreeWarning,
    ErrorPlacementError,
    StateError,
    StreamingError,
    TargetsError,
    VerificationError,
    nearest,
)
from bpfree.feedback.lazy_buffers import key_of, name_of
from bpfree.feedback.projection import Projection, projection
from bpfree.feedback.random import derived_seed
from bpfree.mechanisms.base import Mechanism, not_a_tensor, not_reached, reached_twice, running_again
from bpfree.mechanisms.direct.backward_hooks import with_backward_hooks
from bpfree.mechanisms.direct.choose_pass import PassChooser
from bpfree.mechanisms.direct.connect import connect_error, require_plain_pass
from bpfree.mechanisms.direct.delivery import Layout, PassMemory
from bpfree.mechanisms.direct.exchange_terms import exchange_terms
from bpfree.mechanisms.direct.final_activation import FinalActivation
from bpfree.mechanisms.direct.first_look import FirstLook
from bpfree.mechanisms.direct.forward_pass import Cut, TappedPass, TrainingPass
from bpfree.mechanisms.direct.layouts import Layouts
from bpfree.mechanisms.direct.pass_state import PassStack, PassState
from bpfree.mechanisms.direct.rule_signals import RuleSignals
from bpfree.mechanisms.direct.survey import Survey, error_key, errors_of
from bpfree.mechanisms.direct.tap_table import TapTable
from bpfree.mechanisms.no_gradient_warnings import warn_of_input_gradients
from bpfree.module_tree import ModuleTree, followed, newcomers
from bpfree.per_thread import PerThread
from bpfree.plan import Plan
from bpfree.rerun.checkpoints import NOWHERE, Repetition, checkpoints_around, hooks_on_saving
from bpfree.rerun.stop import StopForward
from bpfree.tabulate import fold_names, name_some
from bpfree.tap_values import put, take
from bpfree.taps import nothing_to_tap
from bpfree.verification.finding import NOT_LEARNED, Finding
from bpfree.verification.laws import compare_outputs

if TYPE_CHECKING:
    from bpfree.mechanisms.direct.rule import DirectRule


class DirectMechanism(Mechanism):
    """Hooks, passes and feedback of one direct rule on one model.

    Attributes:
        sites: The taps that the last pass reached.
        passes: Chooses the kind of each pass.
        layouts: Makes the layouts of passes.
        first_look: Inspects the first pass of each kind.
        finals: For each error, the softmax or sigmoid that it is taken before, as passes have shown.
        further: The mechanisms of all errors except the first, by the errors' names: each has feedback of its own, and
            no hooks.
        first_error: The name of the first error. If its place has several errors, a pass must show it first.
    """

    rule: DirectRule
    is_given_error = True

    def __init__(self, rule: DirectRule, plan: Plan) -> None:
        super().__init__(rule, plan)
        if not plan.taps and not plan.is_stage:
            raise nothing_to_tap(plan.model)
        self.feedback = projection(rule.feedback, plan.seed)
        self.sites: tuple[Site, ...] = ()
        self.passes = PassChooser(plan, self._rerun)
        self.layouts = Layouts(self)
        self.first_look = FirstLook(self)
        self.finals: dict[str, FinalActivation | None] = {}
        self.further = nn.ModuleDict()
        self.first_error = plan.error_name
        self._table = TapTable(self)
        self._calls = PerThread(PassStack)
        self._in_checkpoints: Repetition[Cut] = Repetition()
        # For every tap its forward hooks, and the key of the rule's hook among them.
        self._hooks_of_taps: list[tuple[OrderedDict[int, Any], int]] = []
        self._targets: Tensor | None = None
        self._note_modules()
        for name in list(plan.errors)[1:]:
            self.of_error(name, first=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy or a pickle, without what passes have shown: a copy finds that again."""
        return {**self.__dict__, "_tree": None, "_known": {}}

    def of_error(self, name: str, *, first: bool) -> DirectMechanism:
        """Return the mechanism with the feedback for this error: this one for the first error, else another one."""
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

    # -- in and out ----------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Put hooks on the model, on every tap and on the modules where errors are taken."""
        # Bound methods and partials of them: a deep copy of the model then has a deep copy of the rule.
        plan = self.plan
        add = self._handles.append
        # Before other hooks change the arguments: in a second run they will change them again.
        add(plan.model.register_forward_pre_hook(self._note_arguments, prepend=True, with_kwargs=True))
        add(plan.model.register_forward_pre_hook(self._begin_pass, with_kwargs=True))
        for name, module in plan.taps.items():
            if module not in plan.errors.values():
                handle = module.register_forward_hook(partial(self._cut_at_tap, name))
                self._hooks_of_taps.append((module._forward_hooks, handle.id))  # type: ignore[arg-type]
                add(handle)
        for name, module in plan.errors.items():
            add(module.register_forward_hook(partial(self._take_errors, name)))
        add(plan.model.register_forward_hook(self._end_pass, with_kwargs=True, always_call=True))
        if plan.streaming:
            self._guard_calls()

    def remove(self) -> None:
        """Take the hooks out and forget the forward pass and its targets."""
        super().remove()
        self._unguard_calls()
        self._hooks_of_taps.clear()
        for call in self._calls().calls:
            _close(call)
        self._calls().calls.clear()
        self.passes.forget()
        self._targets = None

    def replan(self, plan: Plan) -> None:
        """Serve the model as ``plan`` describes it, and keep the feedback."""
        Mechanism.remove(self)
        self._unguard_calls()
        self._hooks_of_taps.clear()
        self.plan = plan
        self.passes.replan(plan)
        self.layouts.last = None
        self.finals.clear()
        self.first_look.forget()
        self._table.forget()
        self._note_modules()
        self.install()

    def _follow_model(self) -> None:
        """Put the hooks where they belong in a model whose modules have changed, and warn of the change."""
        before, plan = self._known, followed(self.plan)
        now = dict(plan.model.named_modules())
        came, gone = newcomers(before, now), newcomers(now, before)
        self.replan(plan)
        taps = f"Taps are now {', '.join(fold_names(plan.taps))}."
        warnings.warn(
            f"the model has changed since {self.rule} was attached: {name_some(came)} came"
            f"{f', {name_some(gone)} went' if set(gone) - set(came) else ''}. {taps} To tap other modules, or where an "
            "optimizer steps the feedback, detach and attach again.",
            BpfreeWarning,
            stacklevel=2,
        )

    def _note_modules(self) -> None:
        self._tree: ModuleTree | None = ModuleTree(self.plan.model)
        self._known = dict(self.plan.model.named_modules())

    def _let_cuts_be_last(self) -> None:
        """Move the rule's hooks last: the user's hooks then see outputs with graphs, and their losses reach them."""
        for hooks, cut in self._hooks_of_taps:
            if next(reversed(hooks)) != cut:
                hooks.move_to_end(cut)

    # -- a pass begins -------------------------------------------------------------------------------------------------

    def _note_arguments(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        stack = self._calls()
        if stack.top is not None and stack.top.again and not stack.top.entered:
            return
        self.put_right()
        if self.active:
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
            top.entered, top.around = True, checkpoints_around()
            return None
        compiling, active, again = torch.compiler.is_compiling(), self.active, self.recomputing()
        call = PassState(is_compiled=True) if compiling else PassState(sys._getframe(1), checkpoints_around())
        # The second run of a checkpoint is no training pass of its own, unless the first run had no gradients.
        call.counts = active and (not again or stack.ungraded)
        if active:
            if not compiling:
                self._look_at_model()
                warn_of_input_gradients((*args, *kwargs.values()), self.tell_once, self.rule)
                self.first_look.at(call, *stack.arguments)
            call.tapped = self.start_pass(call.survey)
        if not again:  # after the first look, which may run the model without gradients
            stack.ungraded = not active
        stack.calls.append(call)
        self._on_begin(call, (args, kwargs))
        tapped = call.tapped
        return tapped.enter(args, kwargs) if isinstance(tapped, TrainingPass) else None

    def _look_at_model(self) -> None:
        """Follow the model where its modules or its hooks have changed."""
        if self._tree is None:  # a copy
            self._note_modules()
        elif not self.plan.is_stage and self._tree.has_changed():
            self._follow_model()
        self._let_cuts_be_last()

    def start_pass(self, survey: Survey | None) -> TappedPass:
        """Make the pass that begins."""
        ready = not self.rule.needs_error and self._targets is not None
        aside = frozenset() if survey is None else self.first_look.left_alone(survey)
        handler = self.make_handler if ready else None
        tapped = self.passes.start(self.layouts.last, handler, aside, survey or Survey(frozenset(), {}))
        tapped.aside = aside
        return tapped

    def _on_begin(self, state: PassState, call: Any) -> None:
        """Prepare for the pass ``state`` on ``call``, (args, kwargs). Without ``tapped`` it is not the rule's."""

    def _abandon(self, call: PassState) -> None:
        """Let the present pass be plain autograd."""
        _close(call)
        call.tapped = None

    # -- at a tap ------------------------------------------------------------------------------------------------------

    def _cut_at_tap(self, name: str, module: nn.Module, args: Any, output: Any, *, alone: bool = False) -> Any:
        call = self._calls().top
        compiled = torch.compiler.is_compiling() if call is None else call.is_compiled
        if not (alone or compiled) and hooks_on_saving() is not None:
            return self._cut_in_checkpoint(call, name, module, args, output)
        if call is None:
            return self._tell_of_no_pass(name)
        tapped, plan = call.tapped, self.plan
        if tapped is None:
            return None
        if tapped.reached and len(tapped.reached) == len(plan.errors):
            if isinstance(tapped, TrainingPass):
                self._require_default_tap(name)
            return None
        place = tapped.count_call(name)
        if place in tapped.aside:
            return None
        key = plan.tensor_keys.get(name)
        tensor = take(output, key, name)
        if (module._backward_hooks or module._backward_pre_hooks) and module is not plan.model:
            tensor = with_backward_hooks(module, args, tensor)
        handed_on = tapped.cut(name, place, tensor)
        return handed_on if tensor is output else put(output, key, handed_on)

    def _cut_in_checkpoint(self, call: PassState | None, name: str, module: nn.Module, args: Any, output: Any) -> Any:
        """Cut in the second run of a checkpointed part as in the first, or autograd would save other tensors there."""
        around, cut = checkpoints_around(), None
        second = around.second_run_within(NOWHERE if call is None else call.around)
        if second is not None:
            cut, key = self._in_checkpoints.next(second), self.plan.tensor_keys.get(name)
            handed_on = None if cut is None else put(output, key, cut(take(output, key, name)))
        else:  # also if the whole pass is run again: then its error is taken again too
            tapped = None if call is None else call.tapped
            before = 0 if tapped is None else len(tapped.names)
            handed_on = self._cut_at_tap(name, module, args, output, alone=True)
            if tapped is not None and len(tapped.names) > before:
                cut = tapped.last_cut()
        self._in_checkpoints.note(around.first, cut)
        return handed_on

    def _tell_of_no_pass(self, name: str) -> None:
        if not self.active or self.recomputing():
            return
        self.tell_once(
            "outside",
            f"tap {name!r} was reached without the model that {self.rule} is attached to: a part of the model was "
            "called alone, or model.forward() in place of model(), and trains by plain backpropagation. Call the model "
            "itself, attach the rule to that part, or say attachment.paused() where this is meant.",
        )

    def _require_default_tap(self, name: str) -> None:
        """Raise ErrorPlacementError if a tap above the error was named; default taps there are left alone."""
        if self.plan.explicit:
            raise ErrorPlacementError(
                f"tap {name!r} was reached after error_at={self.plan.error_name!r}. What lies above error_at is "
                "trained exactly and cannot hold a tap: leave that tap out, or take the error further up."
            )

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
        # Noted before anything raises: _end_pass runs all the same, and must not raise a second error.
        twice = place in tapped.reached
        tapped.reached.add(place)
        if len(tapped.reached) == len(self.plan.errors):
            tapped.close()
        found = errors_of(output, partial(_is_error, call, tapped, place))
        if not found:
            raise not_a_tensor(self.plan, output)
        if twice:
            raise reached_twice(place)
        alone = len(self.plan.errors) == 1 and isinstance(output, Tensor)
        if not alone:
            require_plain_pass(self.plan)
            tapped.several = True
        connected: dict[str, Tensor] = {}
        for path, tensor in found.items():
            name, first = error_key(place, path), not connected and place == self.plan.error_name
            exit_ = self._connect(call, tapped, name, tensor, first=first, alone=alone)
            call.exits[name] = exit_
            # Also a stage where nothing learns must send the error to the other stages.
            stands_in = self.plan.is_stage and not exit_.requires_grad
            connected[path] = exit_.detach().requires_grad_() if stands_in else exit_
        return connected[""] if alone else replace_errors(output, connected)

    def _connect(
        self, call: PassState, tapped: TrainingPass, name: str, output: Tensor, *, first: bool, alone: bool
    ) -> Tensor:
        return connect_error(self, call, tapped, name, output, first=first, alone=alone)

    def final_activation(self, name: str, output: Tensor) -> FinalActivation | None:
        """Return the softmax or sigmoid before which this error is taken; None if the user has named the place."""
        if self.plan.placed:
            return None
        if not torch.compiler.is_compiling() and output.grad_fn is not None:
            self.finals[name] = FinalActivation.of(output)
        final = self.finals.get(name)
        if final is not None and not torch.compiler.is_compiling():
            self.tell_once(
                "final",
                f"the model ends in a {final.kind}: {self.rule} takes the error before it, as the rules' sources do. "
                f'To take it behind the {final.kind} say error_at="".',
            )
        return final

    def make_handler(
        self,
        layout: Layout,
        outputs: Sequence[Tensor] = (),
        call: PassState | None = None,
        behind: tuple[FinalActivation, Tensor] | None = None,
    ) -> RuleSignals:
        """Make the handler of the error of a pass.

        Args:
            layout: The layout of the pass.
            outputs: The outputs of the taps below the error, where the pass keeps them.
            call: The model's present call; None before the pass, for signals that need no error.
            behind: The softmax or sigmoid before which the error is taken, and its output.
        """
        self.feedback.prepare(layout.sites, layout.c, layout.like)
        memory = self._remember(call or PassState(), layout, outputs)
        # A recomputed pass must not take the targets that were given for the present backward pass.
        targets = None if self.recomputing() else self.take_targets()
        return RuleSignals(self, layout, memory, targets, behind)

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
        # Without an output the forward pass raised: that error goes to the user, not ours.
        if not isinstance(tapped, TrainingPass) or output is None:
            return None
        if not tapped.reached:
            raise not_reached(self.plan.error_name)
        tapped.on_end(output)
        output = exchange_terms(self.plan, call, tapped, output, (args, kwargs))
        self._table.note(call, tapped)
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

    def take_targets(self) -> Tensor | None:
        """Return the targets that were given and not used yet, and forget them."""
        targets = self._targets
        if targets is not None:
            self._targets = None
        return targets

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

    def _rerun(self, aside: frozenset[str], tapped: TappedPass, call: Any) -> Tensor:
        """Run the model on ``call``, (args, kwargs), as far as the error's place, and return the output there."""
        tapped.aside = aside
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
            output: Tensor = reached.output
            return output
        raise not_reached(self.plan.error_name)

    def check_estimates(self, call: Any, sites: Sequence[Site], *, thorough: bool) -> list[Finding]:
        """Check what an estimating pass relies on, for a rule that has one."""
        return []

    # -- what it looks like, and what is saved -------------------------------------------------------------------------

    def table(self) -> tuple[list[str], list[list[str]], list[str]]:
        """Return the header, a row for each tap, and remarks."""
        return self._table.rows()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if isinstance(self.feedback, Projection) and not self.feedback.feedback.shared:
            start = f"{prefix}feedback."
            saved = {name_of(key.removeprefix(start)) for key in state_dict if key.startswith(start)}
            # A matrix is kept under its tap's name, most of them with a colon and the width.
            taps = {name.rpartition(":")[0] or name for name in saved - self.feedback.numbers.keys()}
            unknown = taps - self.plan.taps.keys()
            if unknown:
                raise StateError(f"the state is for taps that this model does not have: {', '.join(sorted(unknown))}.")
        start = f"{prefix}further."
        for key in {key.removeprefix(start).partition(".")[0] for key in state_dict if key.startswith(start)}:
            self.of_error(name_of(key), first=False)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _is_error(call: PassState, tapped: TrainingPass, place: str, path: str, tensor: Tensor) -> bool:
    """Return whether a tensor among several is an error although cuts have left it without a graph."""
    if call.survey is None:
        return tapped.ends_in_tap(tensor) is not None
    return bool(call.survey.below.get(error_key(place, path)))


def _close(call: PassState) -> None:
    """Put back what the pass has changed around it."""
    if isinstance(call.tapped, TrainingPass):
        call.tapped.close()
