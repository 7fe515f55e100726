"""The forward gradient of the weights: a forward pass in which every weight has a random tangent."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from bpfree.distributed import rank
from bpfree.errors import OptionError
from bpfree.feedback.lazy_buffers import LazyBuffers
from bpfree.feedback.random import derived_seed
from bpfree.forward_mode.dual_level import Shared
from bpfree.forward_mode.dual_numbers import join, split
from bpfree.forward_mode.eager import compiled
from bpfree.forward_mode.perturbations import Perturbations, perturbation
from bpfree.forward_mode.tangents import DualPass, kind_of, nothing_arrives
from bpfree.mechanisms.base import Rule
from bpfree.mechanisms.forward_only.asked_parameters import AskedParameters, asking_class
from bpfree.mechanisms.forward_only.mechanism import ForwardOnlyMechanism, GradientsOfError
from bpfree.mechanisms.reentrant_checkpoints import reentrant_part, watch_reentrant_parts
from bpfree.plan import Plan
from bpfree.rerun.arguments import Call
from bpfree.rerun.snapshot import RunSnapshot


@dataclass
class _Directions:
    """The directions of one pass by parameter (or its replacement by functional_call), and the parameters' places."""

    of: dict[Tensor, Tensor] = field(default_factory=dict)
    places: dict[Tensor, tuple[nn.Module, str]] = field(default_factory=dict)


class WeightsMechanism(ForwardOnlyMechanism):
    """The forward gradient of the weights: the model's own forward pass runs with dual numbers.

    One pass gives the output and the directional derivative; a second pass would compute every output twice. The
    price: hooks of the user below ``error_at`` see dual numbers, and ``detach()`` turns these into constants.

    Args:
        rule: The rule.
        plan: The model and the options.
        kind: The distribution of the directions V.
    """

    def __init__(self, rule: Rule, plan: Plan, kind: Perturbations) -> None:
        super().__init__(rule, plan)
        if plan.window > 1:
            raise OptionError(f"window={plan.window}: {rule} sends no signals to taps that could be carried.")
        if plan.alternate > 1:
            raise OptionError(f"alternate={plan.alternate}: {rule} cuts no graph at taps.")
        if plan.streaming or plan.threads != 1:
            raise OptionError(f"streaming=True and threads= are for segments, and {rule} has none. Leave them out.")
        self.feedback = LazyBuffers(seed=plan.seed, passes=0)
        self._kind: Perturbations = kind
        # The parameters that a pass gets are constants with a tangent: none of them requires a gradient.
        self._rehearsal = DualPass(plan, freeze=False)
        self._exchanged = Shared(self._exchange, self._put_back)
        # The modules whose parameters are exchanged, with their classes and plain parameters, to put back.
        self._plain: list[tuple[nn.Module, type[nn.Module], dict[str, Any]]] = []

    def _start(self, call: Call, stack: ExitStack) -> None:
        if torch.compiler.is_compiling():
            raise compiled()
        watch_reentrant_parts()
        kind, mode = kind_of(self.plan, call), self._rehearsal.mode
        if not mode.knows(kind):
            # A rehearsal finds errors that name the layer; an error in the model's own pass could not be given a name.
            self._rehearsal(call, lambda own: self._perturbed(), RunSnapshot.now(self.plan, call))
        if not self.recomputing():
            self.feedback.numbers["passes"] += 1
        stack.enter_context(mode.entered(self.plan, kind, freeze=False))
        stack.enter_context(self._perturbed())

    def on_reentrant_part(self, function: Callable[..., Any]) -> None:
        """Raise SecondRunError in a pass with tangents: those of weights do not come out of the part."""
        self.put_right()  # a pass that Ctrl-C has ended has no part in this
        state = self._passes.now()
        if state is not None and isinstance(state.seen, _Directions) and torch._C._is_fwd_grad_enabled():
            raise reentrant_part(function, self.plan.model, "in its pass with tangents", self.rule)

    def _follow_model(self) -> None:
        before = self.plan
        super()._follow_model()
        if self.plan is not before:
            self._rehearsal = DualPass(self.plan, freeze=False)

    @contextmanager
    def _perturbed(self) -> Generator[None]:
        """Within this context every parameter that the model asks for is a dual number, its tangent V.

        This holds in this thread. Another thread that evaluates the model meanwhile gets the parameters themselves.
        """
        state = self._passes.now()
        assert state is not None
        state.seen = _Directions()
        with self._exchanged():
            yield

    def _exchange(self) -> None:
        for module in self.plan.model.modules():
            if module._parameters:
                self._plain.append((module, type(module), module._parameters))
                module._parameters = AskedParameters(module._parameters, partial(self._number, module))
                if isinstance(module, nn.RNNBase):
                    kind: Any = type(module)
                    module.__class__ = asking_class(kind)

    def _put_back(self) -> None:
        for module, kind, parameters in self._plain:
            module.__class__ = kind
            module._parameters = parameters
        self._plain = []

    def _number(self, module: nn.Module, name: str, parameter: Tensor) -> Tensor:
        state = self._passes.now()
        if state is None or not isinstance(state.seen, _Directions) or not parameter.requires_grad:
            return parameter
        directions = state.seen.of
        # Within transforms of torch.func a tangent would belong to them, and would be lost after them.
        with temporarily_clear_interpreter_stack():
            if not torch._C._is_fwd_grad_enabled():  # the model computes without gradients here: a constant
                return _standing_in(parameter, parameter.detach())
            if parameter not in directions:
                state.seen.places[parameter] = module, name
                directions[parameter] = self._drawn(parameter, len(directions))
            return _standing_in(parameter, join(parameter.detach(), directions[parameter]))

    def _drawn(self, parameter: Tensor, number: int) -> Tensor:
        seed, passes = self.feedback.numbers["seed"], self.feedback.numbers["passes"]
        purpose = derived_seed(seed, "directions", passes, rank(), number)
        generator = torch.Generator(parameter.device).manual_seed(purpose)
        return perturbation((1, parameter.numel()), self._kind, parameter, generator).view(parameter.shape)

    def _gradients(self, output: Tensor, where: str) -> tuple[GradientsOfError, Tensor]:
        # FSDP2 gives a layer whole parameters while it runs: the parameters that learn are in their place afterwards.
        state = self._passes.now()
        assert state is not None
        seen, state.seen = state.seen, None
        directions = {_in_place(*seen.places[parameter]): V for parameter, V in seen.of.items()}
        primal, change = split(output)
        if change is None:
            raise nothing_arrives(f"change of a trainable parameter arrives at {where}, or nothing below it learns")
        return partial(_along, change.detach(), directions), primal.detach()

    def table(self) -> tuple[list[str], list[list[str]], list[str]]:
        """Return a remark on the gradient of every parameter."""
        where = f"below {self.plan.error_name!r}" if self.plan.error_name else "of the model"
        remark = f"Every trainable parameter {where} gets (dL/dV) V, V random and drawn anew in every pass."
        return [], [], [remark, "No graph is stored and nothing runs backward. Taps have no signals."]


def _in_place(module: nn.Module, name: str) -> Tensor:
    found: Any = dict.__getitem__(module._parameters, name)
    assert isinstance(found, Tensor)
    return found


def _along(change: Tensor, directions: dict[Tensor, Tensor], error: Tensor) -> dict[Tensor, Tensor]:
    """Return (sum e . odot) V for every V, in place: the memory of the direction becomes that of the gradient."""
    slope = (error.to(torch.promote_types(error.dtype, torch.float32)) * change).sum()
    return {parameter: direction.mul_(slope.to(direction)) for parameter, direction in directions.items()}


def _standing_in(parameter: Tensor, number: Tensor) -> Tensor:
    """Return the ``number`` that a pass gets for a parameter, with the attributes that the user's code keeps on it."""
    if type(parameter) is nn.Parameter:  # what another class keeps there may be its own
        number.__dict__ = vars(parameter)
    return number
