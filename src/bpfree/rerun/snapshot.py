"""Run a model without leaving a trace: everything that a forward pass changes is put back."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bpfree.compiled_code import outside_compiled_code
from bpfree.plan import Plan
from bpfree.rerun.find_holders import objects_among
from bpfree.rerun.input_versions import InputVersions
from bpfree.rerun.left_behind import LeftBehind, LeftState
from bpfree.rerun.module_state import Moment, State
from bpfree.rerun.random_state import RandomState


@contextmanager
def preserved(*modules: nn.Module) -> Generator[None]:
    """Put back, at the end of this context, the state of ``modules``, of their hooks, and the global random state.

    Of a learning rule (an attachment) only buffers and counters are put back: what it has learned about the model
    stays. Within the context copies stand in for the tensors, so that graphs which hold the originals stay valid.
    """
    states = [State(module) for module in modules]
    with ExitStack() as stack:
        stack.enter_context(hooks_put_back([part for module in modules for part in module.modules()]))
        random = RandomState.now(*modules)
        stack.callback(random.restore)
        for state in states:
            stack.enter_context(put_back(state, state.now(copies=True)))
        yield


@contextmanager
def put_back(state: State, begin: Moment) -> Generator[None]:
    """Within this context everything holds what it held at the moment ``begin``; afterwards, what it holds now.

    Raises:
        SecondRunError: A tensor that was too large to be copied has been written to.
    """
    left = LeftState(state, begin)
    try:
        begin.begin()
        yield
    finally:
        left.put()
    left.check()


@contextmanager
def hooks_put_back(modules: Sequence[nn.Module]) -> Generator[None]:
    """Remove, at the end of this context, the forward hooks that a model has put on its modules meanwhile.

    Libraries register hooks in a first call, and note it in an attribute; that attribute is put back too.
    """
    first = RemovableHandle.next_id  # torch numbers hooks in the order in which they are registered
    try:
        yield
    finally:
        if RemovableHandle.next_id > first:
            for module in modules:
                for hooks in (module._forward_hooks, module._forward_pre_hooks):
                    for key in [key for key in hooks if key >= first] if hooks else ():
                        hooks.pop(key)


@dataclass(frozen=True)
class Autocast:
    """The precisions that operations run in at one moment.

    Attributes:
        kinds: For every device type whether autocast is on, and its precision.
        cached: True if autocast keeps converted weights.
    """

    kinds: Mapping[str, tuple[bool, torch.dtype]]
    cached: bool

    @classmethod
    def now(cls, kinds: Iterable[str]) -> Autocast:
        """Return the precisions now, for these types of devices."""
        found = {kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds}
        return cls(found, torch.is_autocast_cache_enabled())

    @contextmanager
    def restored(self) -> Generator[None]:
        """Within this context operations run in these precisions."""
        if Autocast.now(self.kinds) == self:  # nearly always, and an interrupt could not leave autocast half entered
            yield
            return
        with ExitStack() as stack:
            for kind, (enabled, dtype) in self.kinds.items():
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=self.cached))
            yield


@dataclass(frozen=True)
class RunSnapshot:
    """The state in which a forward pass begins, so that the model can run a second time exactly as it did the first.

    Attributes:
        random: The random state.
        autocast: The precisions.
        model: The places where the model and its hooks keep things.
        moment: The contents of these places when the pass began.
        arguments: The places inside the arguments, and their contents when the pass began; None if there are none.
        inputs: The arguments and weights.
        parts: The model's modules.
    """

    random: RandomState
    autocast: Autocast
    model: State
    moment: Moment
    arguments: tuple[State, Moment] | None
    inputs: InputVersions
    parts: Sequence[nn.Module]

    @classmethod
    @outside_compiled_code
    def now(cls, plan: Plan, arguments: Any) -> RunSnapshot:
        """Take a snapshot for the model of ``plan``, called with ``arguments``, (args, kwargs)."""
        random = RandomState.now(plan.model)
        autocast = Autocast.now({"cpu", *(device.type for device, _ in random.accelerators)})
        moment = plan.state.now(copies=True)
        objects = objects_among(*arguments)
        called = None
        if objects:
            given = State(objects)
            called = given, given.now(copies=True)
        return cls(
            random, autocast, plan.state, moment, called, InputVersions.now(arguments, plan.modules), plan.modules
        )

    def graphs(self) -> dict[str, Tensor]:
        """Return the tensors with a graph that the model and its arguments keep now, by name."""
        return self.model.graphs() | (self.arguments[0].graphs() if self.arguments else {})

    @contextmanager
    def restored(self, model: nn.Module) -> Generator[LeftBehind]:
        """Within this context a pass runs as the first one did, with a graph, and leaves no trace in ``model``.

        Yields:
            The state that the first run has left. Gradients that are computed within the context need it.

        Raises:
            SecondRunError: The arguments or weights differ from those of the first run, or this run has changed them.
        """
        self.inputs.check(model)
        states = [(self.model, self.moment), *([self.arguments] if self.arguments else [])]
        left = LeftBehind(model, states)
        with ExitStack() as stack:
            stack.callback(left.put)
            stack.enter_context(hooks_put_back(self.parts))
            for _, begin in states:
                begin.begin()
            stack.enter_context(torch.enable_grad())
            stack.enter_context(self.autocast.restored())
            self.random.restore()
            yield left
        left.check()
        self.inputs.check(model)

    @property
    def has_gradient_hooks(self) -> bool:
        """True if gradients call hooks of the user on modules, or have changed what the model holds before."""
        return self.model.is_moved_by_gradients or any(
            part._backward_hooks or part._backward_pre_hooks for part in self.parts
        )
