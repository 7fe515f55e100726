"""The feedback of a direct rule: one for each error that the model has, and the targets that some rules learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn

from bpfree.errors import StateError, TargetsError, nearest
from bpfree.feedback.lazy_buffers import key_of, name_of
from bpfree.feedback.projection import Projection
from bpfree.feedback.projectors import projection
from bpfree.feedback.random import derived_seed
from bpfree.mechanisms.base import Mechanism
from bpfree.mechanisms.direct.hooks import DirectHooks
from bpfree.plan import Plan
from bpfree.taps import nothing_to_tap

if TYPE_CHECKING:
    from bpfree.mechanisms.direct.rule import DirectRule


class ErrorsFeedback(DirectHooks):
    """Holds the feedback of the first error, and the mechanisms that hold that of the others.

    Attributes:
        further: The mechanisms of all errors except the first, by the errors' names: each has feedback of its own, and
            no hooks.
        first_error: The name of the first error. If its place has several errors, a pass must show it first.
    """

    rule: DirectRule

    def __init__(self, rule: DirectRule, plan: Plan) -> None:
        super().__init__(rule, plan)
        if not plan.taps and not plan.is_stage:
            raise nothing_to_tap(plan.model)
        self.feedback = projection(rule.feedback, plan.seed)
        self.further = nn.ModuleDict()
        self.first_error = plan.error_name
        self._targets: Tensor | None = None
        for name in list(plan.errors)[1:]:
            self.of_error(name, first=False)

    def of_error(self, name: str, *, first: bool) -> Self:
        """Return the mechanism with the feedback for this error: this one for the first error, else another one."""
        if first:
            return self
        key = key_of(name)
        if key not in self.further:
            seed = derived_seed(self.plan.seed, "error", name)
            plan = replace(self.plan, errors={name: self.plan.error_module}, seed=seed, alternate=1)
            self.further[key] = self.rule.mechanism(plan)
        found: Any = self.further[key]
        assert type(found) is type(self)
        return found

    @property
    def by_error(self) -> Mapping[str, Mechanism]:
        """The mechanisms with the feedback of each error, by the error's name; the first is this one."""
        further: Any = self.further
        return {self.first_error: self, **{name_of(key): mechanism for key, mechanism in further.items()}}

    def take_targets(self) -> Tensor | None:
        """Return the targets that were given and not used yet, and forget them."""
        targets = self._targets
        if targets is not None:
            self._targets = None
        return targets

    def targets(self, targets: Tensor | Mapping[str, Tensor]) -> None:
        """Keep the targets of the next (or the current) forward pass for its backward pass."""
        if self._switches().pauses:
            return
        if isinstance(targets, Tensor):
            self._targets = targets
            return
        known = self.by_error
        for name, given in targets.items():
            if name not in known:
                raise TargetsError(
                    f"targets are given for {name!r}, and there is no such error. {nearest(name, known)}"
                )
            known[name].targets(given)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if isinstance(self.feedback, Projection) and not self.feedback.feedback.shared:
            start = f"{prefix}feedback."
            own = [key.removeprefix(start) for key in state_dict if key.startswith(start)]
            saved = {name_of(key) for key in own if "." not in key}  # a dot leads to a part of the feedback
            # A matrix is kept under its tap's name, most of them with a colon and the width.
            taps = {name.rpartition(":")[0] or name for name in saved - self.feedback.numbers.keys()}
            unknown = taps - self.plan.taps.keys()
            if unknown:
                raise StateError(f"the state is for taps that this model does not have: {', '.join(sorted(unknown))}.")
        start = f"{prefix}further."
        for key in {key.removeprefix(start).partition(".")[0] for key in state_dict if key.startswith(start)}:
            self.of_error(name_of(key), first=False)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
