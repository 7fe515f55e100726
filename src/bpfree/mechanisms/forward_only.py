"""Forward passes that store no graph: a rule makes the parameters' gradients of the error alone.

Below the module where the error is taken the model runs without a graph. Its output leaves through one autograd
function, whose inputs are the parameters and whose backward pass returns what the rule makes of the error. What lies
above is ordinary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from bpfree.draw import derived_seed
from bpfree.errors import OptionError
from bpfree.estimate import Perturbations, perturbation
from bpfree.finite import require_finite
from bpfree.forward_mode import Call, DualPass, join, kind_of, nothing_arrives, split
from bpfree.mechanisms.base import Mechanism, Rule, not_a_tensor, not_reached, reached_twice
from bpfree.mechanisms.direct import DirectRule
from bpfree.mechanisms.leaving import leave
from bpfree.mechanisms.observing import ObservingMechanism
from bpfree.mechanisms.pass_state import PassState
from bpfree.mechanisms.untaught import warn_of_arguments, warn_of_results
from bpfree.plan import Plan
from bpfree.preserve import Surroundings
from bpfree.projection import NoFeedback
from bpfree.ranks import rank, shared_out
from bpfree.sites import Site
from bpfree.state import LateBuffers

Gradients: TypeAlias = Callable[[Tensor], Mapping[Tensor, Tensor]]
"""Maps dL/do, shaped as the output, to the gradients of the parameters that learn."""


class ForwardOnlyMechanism(Mechanism):
    """Switches the graph off when the model is called and on again where the error is taken."""

    is_given_error = True

    def __init__(self, rule: Rule, plan: Plan) -> None:
        super().__init__(rule, plan)
        # What the pass under way has changed; None when there is none, or its output has left.
        self._open: ExitStack | None = None
        self._left = False

    @abstractmethod
    def _start(self, call: Call, stack: ExitStack) -> None:
        """Make ready for a forward pass; ``stack`` takes what must be put back when the output leaves."""

    @abstractmethod
    def _gradients(self, output: Tensor, where: str) -> tuple[Gradients, Tensor]:
        """What makes the gradients of this pass, and its output as a plain tensor."""

    def install(self) -> None:
        """Put hooks on the model and on the module where the error is taken."""
        plan, add = self.plan, self._handles.append
        add(plan.model.register_forward_pre_hook(self._begin, with_kwargs=True))
        add(plan.error_module.register_forward_hook(self._leave))
        add(plan.model.register_forward_hook(self._end, with_kwargs=True, always_call=True))

    def remove(self) -> None:
        """Take the hooks out."""
        super().remove()
        self._close()

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        # A pass that was interrupted from the keyboard has not been ended.
        self._close()
        self._left = False
        if not self.active:
            return
        warn_of_arguments((args, kwargs), self.rule)
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            self._start((args, kwargs), stack)
            self._open = stack.pop_all()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        if self._left:
            raise reached_twice(self.plan.error_name)
        if self._open is None:
            return None
        try:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                raise not_a_tensor(self.plan, output)
            gradients, plain = self._gradients(output, self.plan.where)
        finally:
            self._close()
        self._left = True
        # All that are trainable, for DDP waits for all of them; those that do not learn get None.
        parameters = [parameter for parameter in self.plan.model.parameters() if parameter.requires_grad]

        def of_all(error: Tensor) -> list[Tensor | None]:
            require_finite(error)
            found = gradients(error)
            return [shared_out(found[parameter], parameter) if parameter in found else None for parameter in parameters]

        return leave(of_all, plain, parameters)

    def _end(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        missed, left, self._left = self._open is not None, self._left, False
        self._close()
        # `output` is None when the forward pass raised: that error goes to the user, not ours.
        if missed and output is not None:
            raise not_reached(self.plan.error_name)
        if left and self.plan.error_name:
            warn_of_results(output, (args, kwargs), self.plan.error_name, self.rule)

    def _close(self) -> None:
        stack, self._open = self._open, None
        if stack is not None:
            stack.close()


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
        self.feedback = LateBuffers(seed=plan.seed, passes=0)
        self._kind: Perturbations = kind
        # By parameter, or by what functional_call has put in its place.
        self._directions: dict[Tensor, Tensor] = {}
        self._places: dict[Tensor, tuple[nn.Module, str]] = {}
        # Parameters that are asked for are constants with a tangent: none of them requires a gradient.
        self._rehearsal = DualPass(plan, freeze=False)

    def remove(self) -> None:
        """Take the hooks out and forget the forward pass."""
        super().remove()
        self._directions, self._places = {}, {}

    def _start(self, call: Call, stack: ExitStack) -> None:
        kind, mode = kind_of(self.plan, call), self._rehearsal.mode
        if not mode.knows(kind):
            # For its named errors, and what it learns: one raised in the model's own pass could not be given a name.
            self._rehearsal(call, self._perturbed, Surroundings.now(self.plan, call))
        if not self.recomputing():
            self.feedback.numbers["passes"] += 1
        stack.enter_context(mode.entered(self.plan.model, kind, freeze=False))
        stack.enter_context(self._perturbed())

    @contextmanager
    def _perturbed(self) -> Generator[None]:
        """Within this context every parameter that the model asks for is a dual number, its tangent V."""
        self._directions, self._places = {}, {}
        owners = [module for module in self.plan.model.modules() if module._parameters]
        plain = [module._parameters for module in owners]
        flat = [(module, module._flat_weights) for module in owners if isinstance(module, nn.RNNBase)]
        handles = [module.register_forward_pre_hook(self._flatten) for module, _ in flat]
        try:
            for module, parameters in zip(owners, plain, strict=True):
                module._parameters = _Asked(parameters, partial(self._number, module))
            yield
        finally:
            for module, parameters in zip(owners, plain, strict=True):
                module._parameters = parameters
            for recurrent, weights in flat:
                recurrent._flat_weights = weights
            for handle in handles:
                handle.remove()

    def _flatten(self, module: nn.RNNBase, args: Any) -> None:
        # Recurrent modules have a second way to their parameters.
        module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]

    def _number(self, module: nn.Module, name: str, parameter: Tensor) -> Tensor:
        if not parameter.requires_grad:
            return parameter
        # Within torch.func's transforms a tangent would be theirs, and gone behind them.
        with temporarily_clear_interpreter_stack():
            if not torch._C._is_fwd_grad_enabled():  # what the model computes without gradients is a constant
                return parameter.detach()
            if parameter not in self._directions:
                self._places[parameter] = module, name
                self._directions[parameter] = self._drawn(parameter, len(self._directions))
            return join(parameter.detach(), self._directions[parameter])

    def _drawn(self, parameter: Tensor, number: int) -> Tensor:
        seed, passes = self.feedback.numbers["seed"], self.feedback.numbers["passes"]
        purpose = derived_seed(seed, "directions", passes, rank(), number)
        generator = torch.Generator(parameter.device).manual_seed(purpose)
        return perturbation((1, parameter.numel()), self._kind, parameter, generator).view(parameter.shape)

    def _gradients(self, output: Tensor, where: str) -> tuple[Gradients, Tensor]:
        # FSDP2 gives a layer its whole parameters for as long as it runs: those that learn are the ones in their place.
        directions = {self._in_place(parameter): V for parameter, V in self._directions.items()}
        self._directions, self._places = {}, {}
        primal, change = split(output)
        if change is None:
            raise nothing_arrives(f"change of a trainable parameter arrives at {where}, or nothing below it learns")
        return partial(_along, change.detach(), directions), primal.detach()

    def _in_place(self, parameter: Tensor) -> Tensor:
        module, name = self._places[parameter]
        found: Any = dict.__getitem__(module._parameters, name)
        assert isinstance(found, Tensor)
        return found

    def table(self) -> tuple[list[str], list[list[str]], list[str]]:
        """What every parameter gets."""
        where = f"below {self.plan.error_name!r}" if self.plan.error_name else "of the model"
        remark = f"Every trainable parameter {where} gets (dL/dV) V, V random and drawn anew in every pass."
        return [], [], [remark, "No graph is stored and nothing runs backward. Taps have no signals."]


def _along(change: Tensor, directions: dict[Tensor, Tensor], error: Tensor) -> dict[Tensor, Tensor]:
    """(sum e . odot) V, for every V in place: the memory of the direction becomes the gradient's."""
    slope = (error.to(torch.promote_types(error.dtype, torch.float32)) * change).sum()
    return {parameter: direction.mul_(slope.to(direction)) for parameter, direction in directions.items()}


class _Asked(dict[str, Any]):
    """A module's parameters: whoever asks for one by name gets what ``number`` makes of it.

    So a parameter that a forward pass does not use is not perturbed, and gets no noise for a gradient.
    """

    def __init__(self, parameters: dict[str, Any], number: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__(parameters)
        self._number = number

    def __getitem__(self, name: str) -> Tensor | None:
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
        self.directions = LateBuffers(seed=plan.seed, passes=0)

    def _is_wanted(self, state: PassState) -> bool:
        self.directions.numbers["passes"] += 1
        return True

    def _seed(self) -> int:
        return derived_seed(self.directions.numbers["seed"], "directions", self.directions.numbers["passes"], rank())
