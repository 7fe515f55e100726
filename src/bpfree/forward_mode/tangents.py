"""A pass with tangents: a model runs with dual numbers up to where its errors are taken.

Forward-mode derivatives are to be those of autograd. :class:`ForwardMode` sees to gradients that the model switches off
(``grad_mode``), compiled parts, derivatives that torch lacks (``by_hand``), and autograd functions without a
forward-mode derivative (``surrogate_jvp``); :class:`DualPass` names layers that have none.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from bpfree.distributed import is_sharded
from bpfree.error_values import Path, error_tensors
from bpfree.errors import ForwardDerivativeError
from bpfree.forward_mode.by_hand import derivatives_by_hand
from bpfree.forward_mode.dual_level import dual_level
from bpfree.forward_mode.dual_numbers import join, split
from bpfree.forward_mode.eager import eager
from bpfree.forward_mode.grad_mode import GradModeWatch, frozen, watched_gradients
from bpfree.forward_mode.own_pass import OwnPass
from bpfree.forward_mode.surrogate_jvp import SurrogateJvps, function_without_jvp
from bpfree.forward_mode.switches import switches_put_back
from bpfree.plan import Plan
from bpfree.rerun.arguments import Call
from bpfree.rerun.own_graphs import own_graphs
from bpfree.rerun.snapshot import RunSnapshot
from bpfree.rerun.stop import StopForward

Prepare: TypeAlias = Callable[[OwnPass], AbstractContextManager[Any]]
"""Returns a context manager that brings the perturbations into one attempt at a pass."""

Tangents: TypeAlias = Mapping[Path, Tensor]
"""The tangents of the floating point tensors in one module's output, by path (:mod:`bpfree.error_values`)."""


class DualOutputs(NamedTuple):
    """The outputs of a pass with tangents: one mapping for each module where an error is taken.

    Attributes:
        tangents: The tangents; zeros where no perturbation arrives. Empty for a module that the pass did not reach.
        values: The values.
    """

    tangents: Sequence[Tangents]
    values: Sequence[Tangents]


class ForwardMode:
    """Runs passes with tangents on one model, and remembers what such passes need.

    Attributes:
        attention: True if the model is known to run attention.
        surrogates: The autograd functions whose forward-mode derivative is made of their backward.
    """

    def __init__(self) -> None:
        self.attention = False
        self.surrogates = SurrogateJvps()
        # Kind of pass -> whether the model does something in it for which gradients must be watched.
        self._watched: dict[Hashable, bool] = {}

    def knows(self, kind: Hashable) -> bool:
        """Return whether a pass of this ``kind`` has run."""
        return kind in self._watched

    @contextmanager
    def entered(self, plan: Plan, kind: Hashable, *, freeze: bool) -> Generator[None]:
        """Within this context a model runs a pass of this ``kind`` with tangents.

        Args:
            plan: The plan of the model.
            kind: The kind of the pass, from :func:`kind_of`.
            freeze: True if its parameters are to require no gradient where gradients are on; else nobody may ask for
                one that does.
        """
        model = plan.model
        watch = GradModeWatch() if self._watched.get(kind, True) and not is_sharded(model) else None
        with ExitStack() as stack:
            stack.enter_context(eager())
            stack.enter_context(derivatives_by_hand(plan.modules, attention=self.attention))
            stack.enter_context(self.surrogates.installed())
            stack.enter_context(dual_level())
            if watch is None:
                stack.enter_context(torch.no_grad())
            else:
                if freeze:  # a pass beside the model's own
                    stack.enter_context(frozen(model))
                    stack.enter_context(own_graphs())
                stack.enter_context(watched_gradients(watch))
            yield
        if watch is not None:
            self._watched[kind] = watch.needed

    def learn_from(self, error: NotImplementedError) -> bool:
        """Learn from a pass that failed with ``error``; return whether another attempt may succeed."""
        function = function_without_jvp(error)
        if function is not None:
            self.surrogates.serve(function)
            return True
        if self.attention or "attention" not in str(error):
            return False
        self.attention = True
        return True


def kind_of(plan: Plan, call: Call) -> Hashable:
    """Return everything on which the model's switching of gradients may depend: modules, modes, and shapes."""
    args, kwargs = call
    modes = tuple([(part.training, len(part._modules)) for part in plan.modules])
    return modes, tuple(map(_outline, args)), tuple([(name, _outline(value)) for name, value in kwargs.items()])


def _outline(argument: Any) -> Hashable:
    if isinstance(argument, Tensor):
        return argument.shape
    if argument is None or isinstance(argument, bool | str):
        return argument
    return type(argument).__qualname__


class DualPass:
    """Runs a model with dual numbers up to where its errors are taken.

    Args:
        plan: Where a rule is put.
        freeze: As :meth:`ForwardMode.entered` has it.
    """

    def __init__(self, plan: Plan, *, freeze: bool = True) -> None:
        self._plan = plan
        self._freeze = freeze
        self.mode = ForwardMode()

    def __call__(
        self, call: Call, prepare: Prepare, start: RunSnapshot, entering: Sequence[Tensor] = ()
    ) -> DualOutputs:
        """Return the tangents and the values of the errors.

        Args:
            call: The model's arguments.
            prepare: Brings the perturbations in.
            start: The state that the pass before began with, so that dropout draws the same masks.
            entering: The tangents of the floating point tensors among the positional arguments, in order; none for
                arguments that are constants.

        Raises:
            ForwardDerivativeError: A layer has no forward-mode derivative, or nothing reaches an error.
        """
        with switches_put_back():
            while True:
                try:
                    return self._run(call, prepare, start, entering)
                except NotImplementedError as error:
                    if not self.mode.learn_from(error):
                        raise self._unserved(call, prepare, start, entering) from error

    def _run(self, call: Call, prepare: Prepare, start: RunSnapshot, entering: Sequence[Tensor]) -> DualOutputs:
        plan = self._plan
        kind, errors = kind_of(plan, call), list(plan.errors.values())
        with ExitStack() as stack:
            stack.enter_context(start.restored(plan.model))
            stack.enter_context(self.mode.entered(plan, kind, freeze=self._freeze))
            own = stack.enter_context(OwnPass(plan.model, plan.state))
            stack.enter_context(prepare(own))
            given = with_tangents(call, entering) if entering else call
            outputs = [error_tensors(output) for output in run_to(plan.model, own, errors, given)]
            pairs = [{path: split(output) for path, output in found.items()} for found in outputs]
        if any(pairs) and all(tangent is None for found in pairs for _, tangent in found.values()):
            raise nothing_arrives(f"perturbation of the taps arrives at {plan.where}")
        tangents = [
            {
                path: torch.zeros_like(primal) if tangent is None else tangent.detach()
                for path, (primal, tangent) in found.items()
            }
            for found in pairs
        ]
        return DualOutputs(
            tangents, [{path: primal.detach() for path, (primal, _) in found.items()} for found in pairs]
        )

    def _unserved(
        self, call: Call, prepare: Prepare, start: RunSnapshot, entering: Sequence[Tensor]
    ) -> ForwardDerivativeError:
        """Run again with every module watched, to find the one that has no derivative."""
        plan = self._plan
        names = {module: name for name, module in plan.model.named_modules()}
        entered: list[nn.Module] = []
        parts = [module for module in names if module is not plan.model]
        said = ""
        with OwnPass(plan.model, plan.state) as own:
            enter = own.hooked(dict.fromkeys(parts, lambda module, args, kwargs: entered.append(module)), before=True)
            with enter, own.hooked(dict.fromkeys(parts, lambda module, args, output: entered.remove(module))):
                try:
                    self._run(call, prepare, start, entering)
                except NotImplementedError as error:
                    said = str(error).partition(" because ")[0].partition("\n")[0].rstrip(".")
        inside = entered[-1] if entered else plan.model
        name = names[inside]
        return ForwardDerivativeError(
            f"layer {name or '(model)'!r} ({type(inside).__name__}) has no forward-mode derivative, which the "
            f"estimating pass needs: {said}. Put the taps behind it (taps=...: what lies before the first tap needs "
            "none), write it with operations that have one, give an autograd.Function a jvp, switch oneDNN off for "
            "an LSTM (torch.backends.mkldnn.enabled), or use a rule with no estimating pass (bpfree.DFA, bpfree.DKP)."
        )


def with_tangents(call: Call, entering: Sequence[Tensor]) -> Call:
    """Return the arguments of a pass with tangents for the floating point tensors among the positional ones."""
    args, kwargs = call
    tangents = iter(entering)
    return tuple([join(arg, next(tangents)) if can_have_tangent(arg) else arg for arg in args]), kwargs


def can_have_tangent(argument: Any) -> bool:
    """Return whether an argument can have a tangent."""
    return isinstance(argument, Tensor) and argument.is_floating_point()


def nothing_arrives(what: str) -> ForwardDerivativeError:
    """Make the error that no ``what``."""
    return ForwardDerivativeError(
        f"no {what}: between them the model takes its values out of the graph (detach(), .data, torch.no_grad(), or an "
        "operation that has no derivative). Take that out, or use a rule with no estimating pass (bpfree.DFA, "
        "bpfree.DKP)."
    )


def run_to(model: nn.Module, own: OwnPass, errors: Sequence[nn.Module], call: Call) -> list[Any]:
    """Return the outputs of ``errors`` in the pass ``own`` that this runs; None for one that is not reached."""
    args, kwargs = call
    # Not the model's __call__: its hooks are for passes that somebody asked for.
    if len(errors) == 1 and errors[0] is model:
        return [model.forward(*args, **kwargs)]
    outputs: dict[nn.Module, Any] = {}

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        outputs.setdefault(module, output)
        if len(outputs) == len(errors):
            raise StopForward

    with suppress(StopForward), own.hooked({module: keep for module in errors if module is not model}):
        output = model.forward(*args, **kwargs)
        if model in errors:
            outputs[model] = output
    return [outputs.get(module) for module in errors]
