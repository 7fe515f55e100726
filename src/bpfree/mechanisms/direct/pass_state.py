"""The state of a call of the model while it runs: one for each call, in each thread."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from bpfree.mechanisms.base import exception_handled
from bpfree.mechanisms.direct.delivery import PassMemory
from bpfree.mechanisms.direct.forward_pass import TappedPass
from bpfree.mechanisms.direct.survey import Survey
from bpfree.rerun.checkpoints import NOWHERE, Around
from bpfree.rerun.snapshot import RunSnapshot


@dataclass
class PassState:
    """One call of the model, from its first hook to its last.

    Attributes:
        frame: The frame of Python that the call came from.
        around: The checkpoints around it.
        is_compiled: True if it is being compiled.
        tapped: The pass, which cuts the graph at the taps; None if the call is plain autograd.
        again: True if it is a rerun that the rule has asked for.
        entered: True if that rerun has begun.
        survey: The survey of such a pass.
        signals: Signals that the taps get in place of the rule's, by call; None for the rule's own.
        first: True if it is the first pass of its kind.
        exits: The tensors through which its errors arrive.
        errors: The tensors at its errors, with the graphs of the layers below them.
        counts: True if it is a training pass of its own.
        learning: True if the feedback learns from it.
        start: The state in which it began, if an estimating pass is to run after it; None if there is none.
        memories: For every error the memory of this pass and c, the number of the error's features.
        handled: The exception that was being handled when it began; None where there was none, as nearly always.
    """

    frame: FrameType | None = None
    around: Around = NOWHERE
    is_compiled: bool = False
    tapped: TappedPass | None = None
    again: bool = False
    entered: bool = False
    survey: Survey | None = None
    signals: dict[str, Tensor | None] | None = None
    first: bool = False
    exits: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[str, Tensor] = field(default_factory=dict)
    counts: bool = False
    learning: bool = False
    start: RunSnapshot | None = None
    memories: dict[str, tuple[PassMemory, int]] = field(default_factory=dict)
    handled: BaseException | None = None

    @property
    def exit_nodes(self) -> set[Any]:
        """The nodes of the graph through which its errors arrive."""
        return {exit_.grad_fn for exit_ in self.exits.values()}

    @property
    def has_raised(self) -> bool:
        """True if an exception of this call is on its way. In compiled code no hook is called then."""
        return not self.is_compiled and exception_handled() is not self.handled


class PassStack:
    """The running calls of one thread: a model may be called inside its own forward pass or hooks.

    Attributes:
        calls: The running calls, the innermost last.
        arguments: The arguments of the call that begins, before the user's hooks change them.
        ungraded: True if the last call had no gradients: a reentrant checkpoint then runs its part for the first time.
    """

    def __init__(self) -> None:
        self.calls: list[PassState] = []
        self.arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self.ungraded = False

    @property
    def top(self) -> PassState | None:
        """The innermost call."""
        return self.calls[-1] if self.calls else None

    def drop_interrupted(self) -> list[PassState]:
        """Forget and return the calls that Ctrl-C has interrupted: torch calls no hook for them."""
        if not self.calls or torch.compiler.is_compiling():
            return []
        alive = set()
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            alive.add(id(frame))
            frame = frame.f_back
        lost = [call for call in self.calls if call.frame is not None and id(call.frame) not in alive]
        self.calls[:] = [call for call in self.calls if call not in lost]
        return lost
