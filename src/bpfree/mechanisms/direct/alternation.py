"""Alternating cuts: a pass cuts one tap in p, and the next step cuts others.

In step t a pass cuts the taps whose index i, in forward order, has (i + t) mod p = 0. Every segment is then p taps
deep, and the grouping moves on with every step.
"""

from __future__ import annotations

import weakref
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.hooks import RemovableHandle

from bpfree.compiled_code import outside_compiled_code
from bpfree.feedback.lazy_buffers import LazyBuffers
from bpfree.feedback.random import derived_seed
from bpfree.plan import Plan

AlternateOrder: TypeAlias = Literal["cyclic", "random"]

_VERSION = attrgetter("_version")

_SAMPLE = 256
"""About so many numbers of each parameter are compared where no optimizer of torch steps it."""


@dataclass(frozen=True)
class Phase:
    """The taps that a pass cuts, one in ``period``.

    Attributes:
        period: p: one tap in ``period`` is cut.
        offset: The tap of index i is cut if i + ``offset`` is a multiple of ``period``.
        always: The calls of taps that every pass cuts: those at which a stage of a pipeline ends.
    """

    period: int = 1
    offset: int = 0
    always: frozenset[str] = frozenset()

    def cuts(self, index: int, place: str) -> bool:
        """Return whether the tap of this index, in forward order from 0, is cut in its call ``place``."""
        return (index + self.offset) % self.period == 0 or place in self.always


EVERY_TAP = Phase()


class Alternation(LazyBuffers):
    """Counts the steps of training, and says which taps are cut in each.

    All passes of one step have the same phase: the micro-batches whose gradients are added up, and the passes of a
    closure. A step is over when an optimizer of torch that holds a parameter of the model has stepped. What else writes
    to parameters ends none from then on: a closure's optimizer moves them between two passes, and averages of weights
    are exchanged for them. As long as no such optimizer has stepped, weights are changed by hand: a step is over when a
    training pass begins and a parameter is another one than in the last pass (compiled code does not see that). A step
    without a training pass does not count.

    The processes of one run agree, because they take the same steps. The counter is saved by ``state_dict()``.

    Args:
        plan: The model, p, the order and the seed.

    Attributes:
        plan: The same.
        phase: The phase of the present step.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(step=0, used=0)
        self.plan = plan
        self._in_whole = Phase(plan.alternate)
        self.phase = self._phase_of(0)
        self._held: Phase | None = None
        # Whether a training pass has had the present phase, and the parameters' versions and numbers at the last one.
        self._is_used = False
        self._versions: int | None = None
        self._sample: Tensor | None = None
        # Whether an optimizer of torch has begun to step the model.
        self._by_optimizer = False
        _watch_optimizers(self)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a pickle, whose parameters have versions of their own."""
        self._settle()
        return {**self.__dict__, "_versions": None, "_sample": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> LazyBuffers:
        self._settle()
        twin = super().__deepcopy__(memo)
        vars(twin).update(_versions=None, _sample=None)
        return twin

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        _watch_optimizers(self)

    def of_pass(self, *, counts: bool) -> Phase:
        """Return the phase of the pass that begins; ``counts`` is False if it only measures."""
        if self._held is not None:
            return self._held
        if torch.compiler.is_compiling():
            if counts:
                self._is_used, self._versions, self._sample = True, None, None
            return self.phase
        if not counts:
            return self._phase_of(self.numbers["step"] + self._is_over())
        self._settle()
        self._is_used = True
        if not self._by_optimizer:
            self._versions, self._sample = self._now(), self._numbers()
        return self.phase

    @contextmanager
    def held(self, phase: Phase) -> Generator[None]:
        """Within this context every pass has this phase."""
        before, self._held = self._held, phase
        try:
            yield
        finally:
            self._held = before

    @property
    def phases(self) -> list[Phase]:
        """All phases."""
        return [replace(self._in_whole, offset=offset) for offset in range(self.plan.alternate)]

    def place(self, first: int, ends: frozenset[str]) -> None:
        """Take note of where a stage lies in its model.

        Args:
            first: The number of taps before it.
            ends: The calls of taps at which it ends.
        """
        self._in_whole = Phase(self.plan.alternate, first, ends)
        self.phase = self._phase_of(self.numbers["step"])

    def ahead(self, steps: int) -> Phase:
        """Return the phase of the step that comes ``steps`` after the present one."""
        return self._phase_of(self.numbers["step"] + steps)

    def on_step_begins(self, optimizer: Optimizer) -> None:
        """Called when an optimizer begins to step: a closure may run passes within the step."""
        if not self._by_optimizer and self._is_of_model(optimizer):
            self._by_optimizer, self._sample = True, None

    def on_step(self, optimizer: Optimizer) -> None:
        """Called when an optimizer has stepped."""
        if self._is_used and self._is_of_model(optimizer):
            self.move_on()

    def _is_of_model(self, optimizer: Optimizer) -> bool:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        return any(id(parameter) in held for parameter in self.plan.model.parameters())

    def _is_over(self) -> bool:
        """Return whether parameters have been changed by hand since the last training pass.

        What writes to ``parameter.data`` leaves the version as it was, so that numbers are compared as well.
        """
        if not self._is_used or self._by_optimizer or self._versions is None:
            return False
        return self._versions != self._now() or (
            self._sample is not None and not _are_same(self._sample, self._numbers())
        )

    def _settle(self) -> None:
        """End the present step if weights that are changed by hand have ended it."""
        if self._is_over():
            self.move_on()

    def _now(self) -> int:
        return sum(map(_VERSION, self.plan.parameters))

    def _numbers(self) -> Tensor | None:
        """Return some numbers of every parameter; None if there are none to look at."""
        parts = [_some_of(parameter) for parameter in self.plan.parameters if _has_numbers(parameter)]
        return torch.cat(parts) if parts else None

    def move_on(self) -> None:
        """End the present step."""
        self.numbers["step"] += 1
        self._is_used, self.phase = False, self._phase_of(self.numbers["step"])

    def _phase_of(self, step: int) -> Phase:
        period = self.plan.alternate
        t = derived_seed(self.plan.seed, "cuts", step) if self.plan.alternate_order == "random" else step
        return replace(self._in_whole, offset=(t + self._in_whole.offset) % period)

    def describe(self) -> str:
        """Return the remark for the attachment's table."""
        period, order = self.plan.alternate, self.plan.alternate_order
        ends = " The taps at which the stage ends are cut in every step." if self._in_whole.always else ""
        return (
            f"Alternating cuts, {order}: each step cuts one tap in {period} and sends its signal there; the layers "
            "below the others learn through them from the next tap above that is cut, or from the error." + ends
        )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self._settle()
        self.numbers["used"] = int(self._is_used) + 2 * int(self._by_optimizer)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        # The weights may be loaded before or after: their versions say nothing.
        self._is_used, self._by_optimizer = bool(self.numbers["used"] & 1), bool(self.numbers["used"] & 2)
        self._versions = self._sample = None
        self.phase = self._phase_of(self.numbers["step"])


_ALIVE: weakref.WeakSet[Alternation] = weakref.WeakSet()
"""All alternations, for the hook on optimizers: torch has one for all of them, and none that begins later is missed."""


def _watch_optimizers(alternation: Alternation) -> None:
    """Let ``alternation`` know of every step of an optimizer."""
    if not _HOOKED:
        _HOOKED.append(register_optimizer_step_pre_hook(_on_step_begins))
        _HOOKED.append(register_optimizer_step_post_hook(_on_step))
    _ALIVE.add(alternation)


_HOOKED: list[RemovableHandle] = []


@outside_compiled_code  # a compiled optimizer calls it too
def _on_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for alternation in list(_ALIVE):
        alternation.on_step(optimizer)


@outside_compiled_code
def _on_step_begins(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for alternation in list(_ALIVE):
        alternation.on_step_begins(optimizer)


def _has_numbers(parameter: Tensor) -> bool:
    """Return whether numbers of a parameter can be read: sharded and sparse ones are seen by their version alone."""
    return parameter.layout is torch.strided and not is_traceable_wrapper_subclass(parameter)


def _some_of(parameter: Tensor) -> Tensor:
    """Return about ``_SAMPLE`` numbers of a parameter, on the CPU."""
    flat = parameter.detach().reshape(-1)
    return flat[:: max(1, len(flat) // _SAMPLE)].double().cpu()


def _are_same(before: Tensor, now: Tensor | None) -> bool:
    """Return whether two samples are equal; NaN equals NaN."""
    return now is not None and before.shape == now.shape and torch.equal(before.nan_to_num(), now.nan_to_num())
