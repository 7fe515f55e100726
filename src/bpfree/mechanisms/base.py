"""The parts of an attachment: a rule, and the mechanism that puts its hooks into a model.

A rule is an immutable description; everything that it draws and learns lives in its mechanism. The two main families:

- :class:`bpfree.DirectRule` sends the error straight to every tap; the rule says which vector is projected;
- :class:`bpfree.LayerwiseRule` goes back layer by layer with other weights than the forward ones.
"""

from __future__ import annotations

import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, Field, dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bpfree.axes.sites import Site
from bpfree.error_values import tensors_of
from bpfree.errors import BpfreeWarning, ErrorPlacementError
from bpfree.feedback.lazy_buffers import LazyBuffers
from bpfree.feedback.options import is_default
from bpfree.finite import ERROR, Watch
from bpfree.forward_mode.grad_mode import rules_are_silent
from bpfree.forward_mode.switches import switches_put_back
from bpfree.mechanisms.reentrant_checkpoints import forget_reentrant_parts
from bpfree.per_thread import PerThread
from bpfree.plan import Plan
from bpfree.registry import MECHANISMS

if TYPE_CHECKING:
    from bpfree.attachment import Attachment

_AGAIN: ContextVar[bool] = ContextVar("again", default=False)
"""True while a model runs a second time on the same arguments."""


@contextmanager
def running_again() -> Generator[None]:
    """Within this context a forward pass is a rerun: every mechanism has counted the pass already."""
    before = _AGAIN.get()
    try:
        _AGAIN.set(True)  # within the try: Ctrl-C may come right behind it
        yield
    finally:
        _AGAIN.set(before)


@dataclass
class Switches:
    """The numbers of contexts of one thread that pause a rule, and that hold its feedback fixed."""

    pauses: int = 0
    fixed: int = 0


def being_exported() -> bool:
    """Return whether a model is being exported or traced: the file gets the model, without the rule."""
    return torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None


class Mechanism(nn.Module):
    """Puts a rule's hooks into a model and takes them out again; owns the rule's feedback and other state.

    This base class adds no hook that changes anything: the model trains by plain backpropagation.

    Attributes:
        rule: The rule.
        plan: The model, its taps and the options.
        feedback: A module with everything that the rule draws and learns; each mechanism has its own kind.
        kept: The class of the attachment and its attributes (:mod:`bpfree.registry`).
    """

    feedback: Any
    sites: tuple[Site, ...] = ()
    """The taps that the last pass reached; none where a rule sends them no signals."""
    is_given_error = False
    """True if the mechanism gets the error before anything below has a gradient, and checks the error itself."""

    def __init__(self, rule: Rule, plan: Plan) -> None:
        super().__init__()
        self.rule = rule
        self.feedback = LazyBuffers()
        self.plan = plan
        self._switches = PerThread(Switches)
        self._said: set[str] = set()
        self._handles: list[RemovableHandle] = []
        self.kept: tuple[type[Attachment], dict[str, Any]] | None = None
        MECHANISMS.add(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        MECHANISMS.add(self)

    @property
    def active(self) -> bool:
        """True if a forward pass that starts now would train by the rule."""
        if not torch.is_grad_enabled() or self._switches().pauses:
            return False
        if torch.compiler.is_compiling():  # also while a model is exported
            return not being_exported()
        return torch._C._get_tracing_state() is None and not rules_are_silent()

    def tell_once(self, about: str, what: str) -> None:
        """Warn of ``what``, once for each key ``about``."""
        if about not in self._said:
            self._said.add(about)
            warnings.warn(what, BpfreeWarning, stacklevel=2)

    @property
    def _fixed(self) -> bool:
        """True if learned feedback must stay as it is."""
        return self._switches().fixed > 0

    @staticmethod
    def recomputing() -> bool:
        """Return whether this is a rerun: of a checkpointed part inside a backward pass, or of a streaming pass."""
        return not torch.compiler.is_compiling() and (torch._C._current_graph_task_id() != -1 or _AGAIN.get())

    def install(self) -> None:
        """Put the hooks in."""

    def watch_error(self) -> None:
        """Let no weight learn from NaN or infinity. Call it after :meth:`install`."""
        plan = self.plan
        if plan.is_stage:  # a stage's error must reach the others before anybody raises
            return
        errors = list(plan.errors.values())
        places = [] if self.is_given_error else errors
        if plan.model not in errors:
            # Layers above the error's place get their gradients before the error is there.
            places = [*places, plan.model]
        for place in places:
            watch = Watch(ERROR if place in errors else "the gradient at the model's output")
            self._handles.append(place.register_forward_hook(partial(self._watch_output, watch)))

    def _watch_output(self, watch: Watch, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not self.active:
            return
        if isinstance(output, Tensor):
            watch(output)
        else:
            for tensor in tensors_of(output):
                watch(tensor)

    def _guard_calls(self) -> None:
        """Put a call of the model right that Ctrl-C ends: torch calls no hook then, and gradients would stay off."""
        vars(self.plan.model)["_call_impl"] = self._call  # what the model's __call__ calls

    def _unguard_calls(self) -> None:
        vars(self.plan.model).pop("_call_impl", None)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        model = self.plan.model
        if torch.compiler.is_compiling():
            return type(model)._call_impl(model, *args, **kwargs)  # type: ignore[no-untyped-call]
        with switches_put_back():
            try:
                return type(model)._call_impl(model, *args, **kwargs)  # type: ignore[no-untyped-call]
            except BaseException:
                self.put_right()
                raise

    def put_right(self) -> None:
        """Put back what passes of this thread have changed that were interrupted from the keyboard."""

    @property
    def by_error(self) -> Mapping[str, Mechanism]:
        """The mechanisms with the feedback of each error, by the error's name; the first is this one."""
        return {self.plan.error_name: self}

    @property
    def is_installed(self) -> bool:
        """True if the hooks are in the model."""
        return bool(self._handles)

    def on_reentrant_part(self, function: Callable[..., Any]) -> None:
        """Called where this thread runs ``function`` by a re-entrant checkpoint; raise if a pass cannot have that."""

    def _has_lost_hooks(self, handles: Iterable[RemovableHandle]) -> bool:
        """Return whether hooks of these handles are missing: a module can say itself how it is copied."""
        modules = list(self.plan.model.modules())
        there = {id(hooks) for module in modules for hooks in (module._forward_pre_hooks, module._forward_hooks)}
        hooked = ((handle.hooks_dict_ref(), handle.id) for handle in handles)
        return any(hooks is None or id(hooks) not in there or key not in hooks for hooks, key in hooked)

    def remove(self) -> None:
        """Take the hooks out, and drop everything that a forward pass left."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        forget_reentrant_parts()

    @contextmanager
    def paused(self) -> Generator[None]:
        """Within this context a forward pass is plain autograd."""
        switches = self._switches()
        before = switches.pauses
        try:
            switches.pauses += 1
            yield
        finally:
            switches.pauses = before

    @contextmanager
    def fixed(self) -> Generator[None]:
        """Within this context feedback that learns stays as it is."""
        switches = self._switches()
        before = switches.fixed
        try:
            switches.fixed += 1
            yield
        finally:
            switches.fixed = before

    @contextmanager
    def stored(self) -> Generator[None]:
        """Within this context a forward pass stores its whole graph, for measurements."""
        yield

    def targets(self, targets: Tensor | Mapping[str, Tensor]) -> None:
        """Take note of the targets; most rules do not need them."""

    def table(self) -> tuple[list[str], list[list[str]], list[str]]:
        """Return the header, rows and remarks of a table that shows what the rule does to the model."""
        remark = "Plain backpropagation: nothing is cut, every parameter gets its exact gradient."
        return [], [], [remark]


@dataclass(frozen=True)
class Rule(ABC):
    """Base of every learning rule."""

    @abstractmethod
    def mechanism(self, plan: Plan) -> Mechanism:
        """Make the object that puts this rule's hooks into one model and owns the rule's state."""

    def __str__(self) -> str:
        """Return the rule's name with the options that differ from their defaults."""
        options = [(option, getattr(self, option.name)) for option in fields(self)]
        told = [f"{option.name}={value!r}" for option, value in options if not is_default(value, _default(option))]
        return f"{type(self).__name__}({', '.join(told)})"


def _default(option: Field[Any]) -> Any:
    """Return the default of an option; MISSING if it has none."""
    return option.default if option.default_factory is MISSING else option.default_factory()


def taught(error: Tensor) -> Tensor:
    """Return which rows of an error ``(N, ...)`` a loss uses, as booleans ``(N,)``: the rows that are not zero.

    Only the error shows it. A row whose loss is at its minimum, such as a row beyond a hinge's margin, is zero too and
    is not counted either.
    """
    touched = error != 0
    return touched.flatten(1).any(1) if touched.dim() > 1 else touched


def exception_handled() -> BaseException | None:
    """Return the exception that is being handled now.

    Where a pass raises, torch calls the hooks at the model's end all the same, and makes a warning of what they raise.
    Such a hook is called while another exception is handled than at the begin of the pass.
    """
    return sys.exc_info()[1]


def not_a_tensor(plan: Plan, output: object) -> ErrorPlacementError:
    """Make the error for an error's place whose output is not one floating point tensor."""
    found = f"a tensor of {output.dtype}" if isinstance(output, Tensor) else f"of type {type(output).__name__}"
    return ErrorPlacementError(
        f"the error is taken at {plan.where}, which is {found}, not one floating point tensor. "
        "Name a module whose output is one: error_at='head', for example."
    )


def reached_twice(name: str) -> ErrorPlacementError:
    """Make the error for a forward pass that reaches an error's place twice."""
    where = repr(name) if name else "the model's output"
    return ErrorPlacementError(
        f"error_at: {where} was reached twice in one forward pass, and a pass takes each error once. Attach the rule "
        "to the part of the model that is called twice, taps and error_at included: each of its calls is then a pass "
        "of its own. Or give that part both inputs as one batch, or name a module further up that a pass reaches once."
    )


def not_reached(name: str) -> ErrorPlacementError:
    """Make the error for a forward pass that never reaches an error's place."""
    return ErrorPlacementError(
        f"error_at={name!r} was not reached in this forward pass, so nothing below it can learn. Name a "
        "module that every training pass runs through."
    )
