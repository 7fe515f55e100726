"""Running a model without leaving a trace: what forward passes change is put back."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.plan import Plan
from bpfree.rerun.find_holders import objects_among
from bpfree.rerun.input_versions import InputVersions
from bpfree.rerun.module_state import Moment, State
from bpfree.rerun.random_state import RandomState


@contextmanager
def preserved(*modules: nn.Module) -> Generator[None]:
    """Put back, on leaving, what ``modules``, their hooks and the global random state have moved.

    Of a learning rule (an attachment) these are the buffers and counters alone: it may learn what a model looks like.
    Copies of the tensors stand in for them, so that graphs which hold the originals stay valid.
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
    """Within this context everything holds what it held at a moment; on leaving, what it holds now.

    Raises:
        SecondRunError: A tensor that was too large to be copied has been written to.
    """
    state.note(begin)
    now = state.now().with_those_of(begin)
    versions = [written.tensor._version for written in begin.tensors]
    try:
        begin.begin()
        yield
    finally:
        now.put()
    begin.check(versions)


@contextmanager
def hooks_put_back(modules: Iterable[nn.Module]) -> Generator[None]:
    """Take out, on leaving, the forward hooks that a model has put on its modules meanwhile.

    Libraries do so in a first call, and note in an attribute that they have; the attribute is put back too.
    """
    kinds = [hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)]
    before = [len(hooks) for hooks in kinds]
    try:
        yield
    finally:
        for hooks, count in zip(kinds, before, strict=True):
            while len(hooks) > count:
                hooks.pop(next(reversed(hooks)))


@dataclass(frozen=True)
class Autocast:
    """Which precisions operations run in at one moment.

    Attributes:
        kinds: Device type -> whether autocast is on, and its precision.
        cached: Whether it keeps converted weights.
    """

    kinds: Mapping[str, tuple[bool, torch.dtype]]
    cached: bool

    @classmethod
    def now(cls, kinds: Iterable[str]) -> Autocast:
        """Keep it for these types of devices."""
        found = {kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds}
        return cls(found, torch.is_autocast_cache_enabled())

    @contextmanager
    def restored(self) -> Generator[None]:
        """Within this context it is as it was."""
        with ExitStack() as stack:
            for kind, (enabled, dtype) in self.kinds.items():
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=self.cached))
            yield


@dataclass(frozen=True)
class RunSnapshot:
    """What a forward pass finds when it begins, so that the model can run a second time as it did the first.

    Attributes:
        random: The random state.
        autocast: The precisions.
        model: What the model and its hooks keep.
        arguments: What its arguments keep besides plain tensors, and that at the moment the pass began.
        moment: What the model kept at that moment.
        operands: Its arguments and weights.
        parts: Its modules.
    """

    random: RandomState
    autocast: Autocast
    model: State
    moment: Moment
    arguments: tuple[State, Moment] | None
    operands: InputVersions
    parts: Sequence[nn.Module]

    @classmethod
    def now(cls, plan: Plan, arguments: Any) -> RunSnapshot:
        """Keep them for the model of ``plan``, called with ``arguments``, (args, kwargs)."""
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
        """The tensors with a graph that the model and its arguments keep now, by name."""
        return self.model.graphs() | (self.arguments[0].graphs() if self.arguments else {})

    @contextmanager
    def restored(self, model: nn.Module) -> Generator[None]:
        """Within this context a pass runs as the first one did, with a graph and without a trace in ``model``.

        Raises:
            SecondRunError: Its arguments or weights are not those of the first, or this pass has changed them.
        """
        self.operands.check(model)
        with ExitStack() as stack:
            stack.callback(RandomState.now(model).restore)
            stack.enter_context(hooks_put_back(self.parts))
            stack.enter_context(put_back(self.model, self.moment))
            if self.arguments is not None:
                stack.enter_context(put_back(*self.arguments))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(self.autocast.restored())
            self.random.restore()
            yield
        self.operands.check(model)
