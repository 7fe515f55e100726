"""The plan of an attachment: the model, its taps and errors, and the options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import TypeAlias

from torch import nn

from bpfree.rerun.module_state import State
from bpfree.tap_values import Key

_REQUIRES_GRAD = attrgetter("requires_grad")  # asked of every parameter in every pass: twice as quick as a generator

SampleAxes: TypeAlias = "int | tuple[int, ...] | Mapping[str, int | tuple[int, ...]] | None"
"""The type of ``sample_axes=``: axes of every place, or by name or pattern of taps, and of ``"error"``."""


@dataclass(frozen=True)
class Plan:
    """The plan of an attachment: the model, its taps and errors, and the options.

    Attributes:
        model: The model, unchanged.
        taps: The tap modules by name.
        explicit: True if the user named the taps.
        errors: The modules at whose outputs errors are taken, by name; "" is the model.
        seed: The seed of everything the rule draws.
        batch_dims: The number of leading dimensions that are not features; None finds out.
        window: The number of segments that a signal is carried through; 1 for the plain rule.
        alternate: One tap in so many is cut in a pass; 1 cuts every tap.
        alternate_order: The order of the passes that cut different taps, ``"cyclic"`` or ``"random"``.
        threads: The number of threads on which segments run in the backward pass; None finds out the faster choice.
        streaming: True if the model runs again, segment by segment, in place of storing its graph.
        is_stage: True if the model is a stage of a pipeline: other taps, or the error's place, are in other processes.
        prefix: The name of the model in a larger one; "" if it is the whole. Taps have it already.
        sample_axes: The axes that number samples, of every place or by place; None finds out.
        placed: True if the user said where errors are taken; if not, they are taken before a final softmax or sigmoid.
        verify: True if the attachment checks itself in its first training pass.
        tensor_keys: The places of taps' tensors in their modules' outputs; without an entry, the first tensor is meant.
    """

    model: nn.Module
    taps: Mapping[str, nn.Module]
    explicit: bool
    errors: Mapping[str, nn.Module]
    seed: int
    batch_dims: int | None
    window: int = 1
    alternate: int = 1
    alternate_order: str = "cyclic"
    streaming: bool = False
    threads: int | None = 1
    is_stage: bool = False
    prefix: str = ""
    sample_axes: SampleAxes = None
    placed: bool = False
    verify: bool = True
    tensor_keys: Mapping[str, Key] = field(default_factory=dict)

    @cached_property
    def modules(self) -> Sequence[nn.Module]:
        """All modules of the model, as they were when the rule was put there."""
        return tuple(self.model.modules())

    @cached_property
    def state(self) -> State:
        """The state that the model and its hooks keep from pass to pass."""
        return State(self.model)

    @cached_property
    def parameters(self) -> Sequence[nn.Parameter]:
        """All parameters of the model, as they were when the rule was put there."""
        return tuple(self.model.parameters())

    @property
    def learning(self) -> tuple[bool, ...]:
        """For every parameter, whether it requires a gradient now."""
        return tuple(map(_REQUIRES_GRAD, self.parameters))

    def whole_name(self, name: str) -> str:
        """Return the name in the whole model of a module that this one calls ``name``."""
        return f"{self.prefix}.{name}" if self.prefix else name

    @property
    def error_name(self) -> str:
        """The name of the place where the error is taken; of the first one, where there are several."""
        return next(iter(self.errors))

    @property
    def error_module(self) -> nn.Module:
        """The module at whose output the error is taken; the first one, where there are several."""
        return next(iter(self.errors.values()))

    @property
    def where(self) -> str:
        """The places where errors are taken, for messages."""
        return ", ".join(repr(name) if name else "the model's output" for name in self.errors)
