"""A learning rule on a model: what :func:`bpfree.attach` makes, and the way out."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.errors import OptionError, StateError, TargetsError
from bpfree.feedback.options import is_unused
from bpfree.feedback.projection import Matrix, Projection
from bpfree.mechanisms.base import Mechanism, Rule
from bpfree.mechanisms.layerwise.weight_mirror import WeightMirrorMechanism
from bpfree.registry import keep
from bpfree.tabulate import fold, tabulate


@contextmanager
def _hooked_or_not(model: nn.Module) -> Generator[None]:
    """Within this context a rule puts its hooks into ``model``; if Ctrl-C ends that, none of them stays."""
    parts = list(model.modules())
    tables: list[dict[int, Any]] = [table for part in parts for table in (part._forward_hooks, part._forward_pre_hooks)]
    known = [set(table) for table in tables]
    own_call = vars(model).get("_call_impl")
    try:
        yield
    except BaseException:
        new = {key for table, before in zip(tables, known, strict=True) for key in table if key not in before}
        for part in parts:
            for table in (
                *(part._forward_hooks, part._forward_hooks_with_kwargs, part._forward_hooks_always_called),
                *(part._forward_pre_hooks, part._forward_pre_hooks_with_kwargs),
            ):
                for key in new & table.keys():
                    del table[key]
        if own_call is None:
            vars(model).pop("_call_impl", None)
        raise


class Attachment(nn.Module):
    """A learning rule on a model: made by :func:`bpfree.attach`.

    It owns the rule's state and holds the model without registering it, so it can be a submodule of whatever
    trains the model, moves with ``.to()`` and is saved by ``state_dict()``. A run that restores model, optimizer and
    attachment continues bit for bit. ``print(attachment)`` shows what the rule does to the model.

    Attributes:
        rule: The rule.
        mechanism: The mechanism, which put the hooks in and holds the feedback.
        within: The same of the layerwise rule inside the segments of a direct one, or None.
    """

    def __init__(self, rule: Rule, mechanism: Mechanism, *, within: Mechanism | None = None) -> None:
        super().__init__()
        self.rule = rule
        self.mechanism = mechanism
        self.within = within
        self._attached = True
        with _hooked_or_not(self.model):
            # Layers are joined to their inputs before a tap cuts what they give.
            for part in self.parts():
                part.install()
            mechanism.watch_error()
            keep(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        keep(self)

    @property
    def model(self) -> nn.Module:
        """The model that learns."""
        return self.mechanism.plan.model

    @property
    def taps(self) -> Mapping[str, nn.Module]:
        """The tap modules by name."""
        return self.mechanism.plan.taps

    @property
    def feedback(self) -> nn.Module:
        """The matrices that the rule draws and learns, by name; their tensors may be written into.

        - A direct rule with one matrix for all taps: ``"shared"``. With one matrix for each tap: ``"TAP:WIDTH"``, for
          example ``"blocks.0.act:512"``; ``"TAP:CHANNELSxMODES"`` with spatial modes; ``"TAP"`` where an optimizer
          steps it.
        - A layerwise rule: ``"LAYER"``, the name of the layer.
        - :class:`bpfree.PEPITA`: ``"F"``.

        Where the feedback is a callable of yours, ``feedback.project`` is that callable.
        """
        feedback: nn.Module = self.mechanism.feedback
        return feedback

    @property
    def feedbacks(self) -> Mapping[str, nn.Module]:
        """The feedback of each error by the error's name, as in ``feedbacks["value"]``."""
        return {name: mechanism.feedback for name, mechanism in self.mechanism.by_error.items()}

    def targets(self, targets: Tensor | Mapping[str, Tensor]) -> None:
        """Give the targets of this step, before ``loss.backward()``: for rules that learn from them (DRTP).

        Args:
            targets: Class numbers ``(N,)``, integers, or numbers of the output's shape ``(N, c)``. With several errors
                a mapping from their names.

        Raises:
            TargetsError: They are not a tensor, or there is no error of such a name.
        """
        for given in targets.values() if isinstance(targets, Mapping) else [targets]:
            if not isinstance(given, Tensor):  # callers are not type-checked
                raise TargetsError(f"targets are of type {type(given).__name__}; a tensor is needed.")
        self.mechanism.targets(targets)

    def adjacency(self, matrix: Matrix) -> None:
        """Give the matrix that errors are spread over, for feedback with ``spread`` (:class:`bpfree.Feedback`).

        It stays until another is given, and is not part of the state.

        Args:
            matrix: S, ``(N, N)`` for N nodes: a tensor, dense or sparse, or anything that ``S @ error`` is defined for.
                Usual is the normalized adjacency D^-1/2 (A + I) D^-1/2.

        Raises:
            OptionError: The rule has no matrices to project by, or no error is to be spread.
        """
        if not isinstance(self.feedback, Projection):
            raise OptionError(f"{self.rule} projects no error by matrices of its own, so there is none to spread.")
        if not self.feedback.feedback.spread:
            raise OptionError("no error is to be spread: Feedback(spread=k) says over how many edges.")
        self.feedback.adjacency = matrix

    def mirror(self, steps: int) -> None:
        """Take ``steps`` mirror steps (:class:`bpfree.WeightMirror`), such as before training begins.

        Raises:
            OptionError: Neither the rule nor the one within it is a weight mirror, or ``steps`` is no whole number of 0
                or more.
            StateError: No forward pass has shown yet which layers there are.
        """
        if not isinstance(steps, int):  # callers are not type-checked
            raise OptionError(f"steps={steps!r}: a whole number of mirror steps, 0 or more.")
        mirrors = [part for part in self.parts() if isinstance(part, WeightMirrorMechanism)]
        if not mirrors:
            raise OptionError(f"{self.rule} has nothing to mirror: that is for bpfree.WeightMirror().")
        for part in mirrors:
            part.mirror(steps)

    @contextmanager
    def paused(self) -> Generator[None]:
        """Within this context forward passes are plain autograd."""
        with ExitStack() as stack:
            for part in self.parts():
                stack.enter_context(part.paused())
            yield

    @contextmanager
    def fixed(self) -> Generator[None]:
        """Within this context feedback that learns stays as it is, to measure it."""
        with ExitStack() as stack:
            for part in self.parts():
                stack.enter_context(part.fixed())
            yield

    def parts(self) -> list[Mechanism]:
        """Return the mechanisms, in the order in which their hooks go in."""
        return [self.mechanism] if self.within is None else [self.within, self.mechanism]

    def detach(self) -> None:
        """Take every hook out. The model is as it was, with the weights it has learned. A second call does nothing."""
        if self._attached:
            for part in self.parts():
                part.remove()
            self._attached = False

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # A tensor, so that any format that stores tensors can hold the whole state.
        destination[prefix + "rule"] = torch.tensor(list(self._fingerprint().encode()), dtype=torch.uint8)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.pop(prefix + "rule", None)
        if saved is None:
            raise StateError(f"the state holds no {prefix + 'rule'!r}: it is not that of an attachment.")
        of = bytes(saved.tolist()).decode()
        if of != self._fingerprint():
            raise StateError(f"the state is that of {of}; this attachment runs {self._fingerprint()}.")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _fingerprint(self) -> str:
        inner = "" if self.within is None else f" with {_fingerprint(self.within.rule)} within"
        period = self.mechanism.plan.alternate
        return _fingerprint(self.rule) + inner + (f" with alternate={period}" if period > 1 else "")

    def __repr__(self) -> str:
        plan = self.mechanism.plan
        title = f"{self.rule!s} on {type(self.model).__name__}" + (f", window {plan.window}" if plan.window > 1 else "")
        title += f", alternate {plan.alternate}" if plan.alternate > 1 else ""
        title += ", streaming" if plan.streaming else ""
        lines = [title if self._attached else f"{title}, detached"]
        for part in reversed(self.parts()):
            header, rows, remarks = part.table()
            lines += [f"within: {part.rule!s}"] if part is self.within else []
            lines += [*tabulate(header, fold(rows)), *remarks]
        size = sum(tensor.numel() * tensor.element_size() for tensor in (*self.buffers(), *self.parameters()))
        return "\n".join([*lines, f"Feedback memory: {size / 2**10:,.1f} KiB" if size else "No feedback is stored."])


def _fingerprint(rule: Rule) -> str:
    """Return the rule and its options, without the addresses that the text of a callable would hold."""
    options = {option.name: getattr(rule, option.name) for option in fields(rule) if not is_unused(option, rule)}
    plain = {name: value for name, value in options.items() if not callable(value)}
    return f"{type(rule).__name__}({', '.join(f'{name}={value!r}' for name, value in plain.items())})"
