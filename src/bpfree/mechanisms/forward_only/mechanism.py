"""Forward passes that store no graph: a rule makes the parameters' gradients of the error alone.

Below the module where the error is taken the model runs without a graph. Its output leaves through one autograd
function, whose inputs are the parameters and whose backward pass returns what the rule makes of the error. What lies
above is ordinary.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

from bpfree.axes.sites import Site
from bpfree.distributed import rank, shared_out
from bpfree.errors import OptionError
from bpfree.feedback.lazy_buffers import LazyBuffers
from bpfree.feedback.projection import NoFeedback
from bpfree.feedback.random import derived_seed
from bpfree.finite import require_finite
from bpfree.forward_mode.estimate import Perturbations, perturbation
from bpfree.forward_mode.grad_mode import silent_rules
from bpfree.forward_mode.tangents import Call, DualPass, compiled, join, kind_of, nothing_arrives, split
from bpfree.mechanisms.autograd import gradients_from_error
from bpfree.mechanisms.base import Mechanism, Rule, not_a_tensor, not_reached, reached_twice, running_again
from bpfree.mechanisms.direct.pass_state import PassState
from bpfree.mechanisms.direct.rule import DirectRule
from bpfree.mechanisms.learned.observing import ObservingMechanism
from bpfree.mechanisms.no_gradient_warnings import warn_of_a_call, warn_of_arguments, warn_of_results
from bpfree.module_tree import ModuleTree, followed
from bpfree.passes import Passes
from bpfree.plan import Plan
from bpfree.rerun.own_graphs import own_graphs
from bpfree.rerun.snapshot import RunSnapshot
from bpfree.rerun.trial import copied, without_trace

Gradients: TypeAlias = Callable[[Tensor], Mapping[Tensor, Tensor]]
"""Maps dL/do, shaped as the output, to the gradients of the parameters that learn."""


@dataclass(eq=False)
class GraphlessPass:
    """A forward pass of the model.

    Attributes:
        changes: What it has changed, until its output leaves; None where it is not of the rule.
        left: Whether its output has left through the rule's function.
        seen: What the mechanism keeps of it.
    """

    changes: ExitStack | None = None
    left: bool = False
    seen: Any = None

    def close(self) -> None:
        """Put back what it has changed."""
        changes, self.changes = self.changes, None
        if changes is not None:
            changes.close()


def _nothing(_: Tensor) -> None:
    """What a graph that is only looked at stores."""


def _asked_for(_: None) -> Tensor:
    raise RuntimeError("the model asks for gradients in its own forward pass")


class ForwardOnlyMechanism(Mechanism):
    """Switches the graph off when the model is called and on again where the error is taken."""

    is_given_error = True

    def __init__(self, rule: Rule, plan: Plan) -> None:
        super().__init__(rule, plan)
        self._passes: Passes[GraphlessPass] = Passes()
        self._tree = ModuleTree(plan.model)
        self._parts_handles: list[RemovableHandle] = []
        self._told = self._looked = False

    @abstractmethod
    def _start(self, call: Call, stack: ExitStack) -> None:
        """Make ready for a forward pass; ``stack`` takes what must be put back when the output leaves."""

    @abstractmethod
    def _gradients(self, output: Tensor, where: str) -> tuple[Gradients, Tensor]:
        """What makes the gradients of this pass, and its output as a plain tensor."""

    # -- hooks ---------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Put hooks on the model and on the module where the error is taken."""
        plan, add = self.plan, self._handles.append
        add(plan.model.register_forward_pre_hook(self._begin, with_kwargs=True))
        if plan.error_module is plan.model:
            add(plan.model.register_forward_hook(self._leave))
        add(plan.model.register_forward_hook(self._end, with_kwargs=True, always_call=True))
        # What the model's __call__ calls. Torch calls no hook where KeyboardInterrupt ends a forward pass.
        vars(plan.model)["_call_impl"] = self._call
        self._hook_parts()

    def remove(self) -> None:
        """Take the hooks out."""
        super().remove()
        self._unhook_parts()
        vars(self.plan.model).pop("_call_impl", None)
        for run in self._passes.clear():
            run.close()

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model, and put right behind it what it has not put right itself."""
        model = self.plan.model
        try:
            return type(model)._call_impl(model, *args, **kwargs)  # type: ignore[no-untyped-call]
        finally:
            self.put_right()

    def _hook_parts(self) -> None:
        """Put hooks on the modules in the model."""
        plan, add = self.plan, self._parts_handles.append
        for name, module in plan.model.named_modules():
            if module._parameters and module is not plan.model and not self._hooks(name):
                add(module.register_forward_pre_hook(partial(self._reached, name)))
        if plan.error_module is not plan.model:
            add(plan.error_module.register_forward_hook(self._leave))

    def _hooks(self, name: str) -> bool:
        """Whether a hook of the rule's own is on a layer, and tells :meth:`_reached` of it."""
        return False

    def _unhook_parts(self) -> None:
        for handle in self._parts_handles:
            handle.remove()
        self._parts_handles.clear()

    def _follow_model(self) -> None:
        """Hook the modules that came into the model since the last training pass."""
        if self._tree.has_changed():
            self._unhook_parts()
            self.plan, self._tree = followed(self.plan), ModuleTree(self.plan.model)
            self._hook_parts()

    def _reached(self, name: str, module: nn.Module, args: Any) -> None:
        """Notice a layer that runs without a call of the model."""
        if self._told or self._passes.now() is not None or not self.active or self.recomputing():
            return
        self._told = True
        warn_of_a_call(self.plan.model, name, self.rule)

    # -- passes --------------------------------------------------------------------------------------------------

    def _kept_in_a_plain_pass(self, call: Call, way: AbstractContextManager[Any]) -> list[str]:
        """The names of the tensors with a graph that the model keeps after a run on ``call``, done in ``way``."""
        args, kwargs = copied(call)
        with without_trace(self.plan, call), silent_rules(), running_again(), way:
            type(self.plan.model)._call_impl(self.plan.model, *args, **kwargs)  # type: ignore[no-untyped-call]
            places = [(holder, key, kept) for holder in self.plan.state.holders for key, kept in holder.tensors]
            return [holder.name(key) for holder, key, kept in places if kept.grad_fn is not None]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _tell_of_kept(self, call: Call) -> None:
        """Tell of what a plain pass leaves in the model with a graph: a pass of this rule leaves it without."""
        try:
            names = self._kept_in_a_plain_pass(call, saved_tensors_hooks(_nothing, _asked_for))
        except RuntimeError:  # a model that differentiates in its own pass needs what its graph stores
            names = self._kept_in_a_plain_pass(call, own_graphs())
        if names:
            self.tell_once(
                "kept",
                f"the model keeps tensors on itself, {', '.join(map(repr, names[:3]))}, that have no graph under "
                f"{self.rule}: a loss of them teaches nothing. Use another rule (bpfree.DFA) where it is to; if they "
                "are only looked at, all is well.",
            )

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.plan.verify and not self._looked and self.active and not torch.compiler.is_compiling():
            self._looked = True
            self._tell_of_kept((args, kwargs))
        run = GraphlessPass()
        for interrupted in self._passes.begin(run):
            interrupted.close()
        if not self.active:
            return
        self._follow_model()
        warn_of_arguments((args, kwargs), self.rule)
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            self._start((args, kwargs), stack)
            run.changes = stack.pop_all()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        run = self._passes.now()
        if run is None:
            return None
        if run.left:
            raise reached_twice(self.plan.error_name)
        if run.changes is None:
            return None
        try:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                raise not_a_tensor(self.plan, output)
            gradients, plain = self._gradients(output, self.plan.where)
        finally:
            run.close()
        run.left = True
        # All that are trainable, for DDP waits for all of them; those that do not learn get None.
        parameters = [parameter for parameter in self.plan.model.parameters() if parameter.requires_grad]

        def of_all(error: Tensor) -> list[Tensor | None]:
            require_finite(error)
            found = gradients(error)
            return [shared_out(found[parameter], parameter) if parameter in found else None for parameter in parameters]

        return gradients_from_error(of_all, plain, parameters)

    def _end(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        run = self._passes.end()
        if run is None:
            return
        missed = run.changes is not None
        run.close()
        # `output` is None when the forward pass raised: that error goes to the user, not ours.
        if missed and output is not None:
            raise not_reached(self.plan.error_name)
        if run.left and self.plan.error_name:
            warn_of_results(output, (args, kwargs), self.plan.error_name, self.rule)

    def put_right(self) -> None:
        """Put back what passes of this thread have changed that were interrupted from the keyboard."""
        for run in self._passes.drop_interrupted():
            run.close()

    @contextmanager
    def paused(self) -> Generator[None]:
        """Within this context a forward pass is plain autograd."""
        self.put_right()
        with super().paused():
            yield


@dataclass
class _Directions:
    """The directions of one pass, by parameter, or by what functional_call has put in its place; and the places."""

    of: dict[Tensor, Tensor] = field(default_factory=dict)
    places: dict[Tensor, tuple[nn.Module, str]] = field(default_factory=dict)


_EXCHANGING = threading.Lock()


class WeightsMechanism(ForwardOnlyMechanism):
    """The forward gradient of the weights: the model's own forward pass runs with dual numbers.

    One pass gives output and directional derivative; a second one would compute every output twice. The price: hooks
    of the user's below ``error_at`` see dual numbers, which ``detach()`` makes constants of.

    Args:
        rule: The rule.
        plan: Where it is put.
        kind: What the directions V are drawn from.
    """

    def __init__(self, rule: Rule, plan: Plan, kind: Perturbations) -> None:
        super().__init__(rule, plan)
        if plan.window > 1:
            raise OptionError(f"window={plan.window}: {rule} sends no signals to taps that could be carried.")
        if plan.streaming or plan.threads != 1:
            raise OptionError(f"streaming=True and threads= are for segments, and {rule} has none. Leave them out.")
        self.feedback = LazyBuffers(seed=plan.seed, passes=0)
        self._kind: Perturbations = kind
        # Parameters that are asked for are constants with a tangent: none of them requires a gradient.
        self._rehearsal = DualPass(plan, freeze=False)
        # How many passes have the parameters exchanged; what is then put back.
        self._exchanges = 0
        self._plain: list[tuple[nn.Module, dict[str, Any], dict[str, Any]]] = []

    def _start(self, call: Call, stack: ExitStack) -> None:
        if torch.compiler.is_compiling():
            raise compiled()
        kind, mode = kind_of(self.plan, call), self._rehearsal.mode
        if not mode.knows(kind):
            # For its named errors, and what it learns: one raised in the model's own pass could not be given a name.
            self._rehearsal(call, self._perturbed, RunSnapshot.now(self.plan, call))
        if not self.recomputing():
            self.feedback.numbers["passes"] += 1
        stack.enter_context(mode.entered(self.plan.model, kind, freeze=False))
        stack.enter_context(self._perturbed())

    def _follow_model(self) -> None:
        before = self.plan
        super()._follow_model()
        if self.plan is not before:
            self._rehearsal = DualPass(self.plan, freeze=False)

    @contextmanager
    def _perturbed(self) -> Generator[None]:
        """Within this context every parameter that the model asks for is a dual number, its tangent V.

        In this thread: one that evaluates the model meanwhile gets the parameters themselves.
        """
        run = self._passes.now()
        assert run is not None
        run.seen = _Directions()
        with _EXCHANGING:
            self._exchanges += 1
            if self._exchanges == 1:
                self._exchange()
        try:
            yield
        finally:
            with _EXCHANGING:
                self._exchanges -= 1
                if not self._exchanges:
                    self._put_back()

    def _exchange(self) -> None:
        for module in self.plan.model.modules():
            if module._parameters:
                self._plain.append((module, module._parameters, _without_flat_weights(module)))
                module._parameters = _Asked(module, module._parameters, partial(self._number, module))

    def _put_back(self) -> None:
        for module, parameters, flat in self._plain:
            module._parameters = parameters
            vars(module).update(flat)
        self._plain = []

    def _number(self, module: nn.Module, name: str, parameter: Tensor) -> Tensor:
        run = self._passes.now()
        if run is None or not isinstance(run.seen, _Directions) or not parameter.requires_grad:
            return parameter
        directions = run.seen.of
        # Within torch.func's transforms a tangent would be theirs, and gone behind them.
        with temporarily_clear_interpreter_stack():
            if not torch._C._is_fwd_grad_enabled():  # what the model computes without gradients is a constant
                return parameter.detach()
            if parameter not in directions:
                run.seen.places[parameter] = module, name
                directions[parameter] = self._drawn(parameter, len(directions))
            return join(parameter.detach(), directions[parameter])

    def _drawn(self, parameter: Tensor, number: int) -> Tensor:
        seed, passes = self.feedback.numbers["seed"], self.feedback.numbers["passes"]
        purpose = derived_seed(seed, "directions", passes, rank(), number)
        generator = torch.Generator(parameter.device).manual_seed(purpose)
        return perturbation((1, parameter.numel()), self._kind, parameter, generator).view(parameter.shape)

    def _gradients(self, output: Tensor, where: str) -> tuple[Gradients, Tensor]:
        # FSDP2 gives a layer its whole parameters for as long as it runs: those that learn are the ones in their place.
        run = self._passes.now()
        assert run is not None
        seen, run.seen = run.seen, None
        directions = {_in_place(*seen.places[parameter]): V for parameter, V in seen.of.items()}
        primal, change = split(output)
        if change is None:
            raise nothing_arrives(f"change of a trainable parameter arrives at {where}, or nothing below it learns")
        return partial(_along, change.detach(), directions), primal.detach()

    def table(self) -> tuple[list[str], list[list[str]], list[str]]:
        """What every parameter gets."""
        where = f"below {self.plan.error_name!r}" if self.plan.error_name else "of the model"
        remark = f"Every trainable parameter {where} gets (dL/dV) V, V random and drawn anew in every pass."
        return [], [], [remark, "No graph is stored and nothing runs backward. Taps have no signals."]


def _without_flat_weights(module: nn.Module) -> dict[str, Any]:
    """Take away a recurrent module's list of its parameters, so that it asks `_parameters` for it; return what was."""
    if not isinstance(module, nn.RNNBase):
        return {}
    kept = {name: vars(module)[name] for name in ("_flat_weights", "_flat_weight_refs")}
    del module._flat_weights
    # By these it finds out whether to make the list anew.
    module._flat_weight_refs = [None] * len(module._flat_weights_names)
    return kept


def _in_place(module: nn.Module, name: str) -> Tensor:
    found: Any = dict.__getitem__(module._parameters, name)
    assert isinstance(found, Tensor)
    return found


def _along(change: Tensor, directions: dict[Tensor, Tensor], error: Tensor) -> dict[Tensor, Tensor]:
    """(sum e . odot) V, for every V in place: the memory of the direction becomes the gradient's."""
    slope = (error.to(torch.promote_types(error.dtype, torch.float32)) * change).sum()
    return {parameter: direction.mul_(slope.to(direction)) for parameter, direction in directions.items()}


class _Asked(dict[str, Any]):
    """A module's parameters: whoever asks for one by name gets what ``number`` makes of it.

    So a parameter that a forward pass does not use is not perturbed, and gets no noise for a gradient.
    """

    def __init__(self, module: nn.Module, parameters: dict[str, Any], number: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__(parameters)
        self._module, self._number = module, number

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (name == "_flat_weights" and isinstance(self._module, nn.RNNBase))

    def __getitem__(self, name: str) -> Any:
        if name == "_flat_weights" and isinstance(self._module, nn.RNNBase):
            return [getattr(self._module, weight) for weight in self._module._flat_weights_names]
        parameter = super().__getitem__(name)
        return None if parameter is None else self._number(name, parameter)


class _NoMatrix(NoFeedback):
    def describe(self, site: Site) -> str:
        """What the attachment's table says."""
        return "random direction"


class ActivationsMechanism(ObservingMechanism):
    """The forward gradient of the activations: perturbations at the taps, and the output's answer to them."""

    def __init__(self, rule: DirectRule, plan: Plan, kind: Perturbations) -> None:
        super().__init__(rule, plan, kind)
        self.feedback = _NoMatrix()
        self.directions = LazyBuffers(seed=plan.seed, passes=0)

    def _is_wanted(self, state: PassState) -> bool:
        self.directions.numbers["passes"] += 1
        return True

    def _seed(self) -> int:
        return derived_seed(self.directions.numbers["seed"], "directions", self.directions.numbers["passes"], rank())
