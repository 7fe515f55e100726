"""The first look at a kind of pass: before any weight learns, the model runs once with its graph whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch.nn.parameter import is_lazy

from bpfree.axes.place import module_of_call
from bpfree.compiled_code import outside_compiled_code
from bpfree.forward_mode.switches import switches_put_back
from bpfree.mechanisms.direct.inspection import Inspection
from bpfree.mechanisms.direct.pass_state import PassState
from bpfree.mechanisms.direct.survey import Survey
from bpfree.module_tree import has_frozen_behind
from bpfree.rerun.trial import kind_of_call
from bpfree.tabulate import name_some

if TYPE_CHECKING:
    from bpfree.mechanisms.direct.mechanism import DirectMechanism


class FirstLook:
    """Inspects each kind of pass once, and keeps its survey.

    Args:
        mechanism: The mechanism of these passes.
    """

    def __init__(self, mechanism: DirectMechanism) -> None:
        self._mechanism = mechanism
        self._surveys: dict[Any, Survey] = {}
        self._remarks: list[str] = []

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without surveys: a copy makes its own."""
        return {**self.__dict__, "_surveys": {}}

    def forget(self) -> None:
        """Forget all surveys: the model's modules have changed."""
        self._surveys.clear()

    def at(self, state: PassState, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Note in ``state`` the survey of a pass on these arguments; inspect the pass if it is the first of its kind.

        Raises:
            VerificationError: The model would learn something else than the rule says.
        """
        mechanism, plan = self._mechanism, self._mechanism.plan
        if not plan.verify or plan.is_stage:
            return
        kind = kind_of_call(plan.model, args, kwargs)
        if mechanism.recomputing():  # a checkpoint around the model: it is cut as in its first run
            state.survey = self._surveys.get(kind)
            return
        state.first = kind not in self._surveys
        if state.first:
            if any(map(is_lazy, plan.parameters)):
                state.first = False
                return
            self._inspect(kind, (args, kwargs))
        state.survey = self._surveys[kind]

    @outside_compiled_code
    def _inspect(self, kind: Any, call: Any) -> None:
        mechanism = self._mechanism
        with switches_put_back():
            inspection = Inspection(mechanism, call)
        survey = self._surveys[kind] = inspection.survey
        mechanism.finals.update(survey.finals)
        if inspection.unheard:
            mechanism.tell_once(
                "backward hooks",
                f"full backward hooks on {name_some(inspection.unheard)} do not see what they would under "
                "backpropagation: no gradient passes a tap, and one comes for every step of a window= and for every "
                "further loss that is made of a tap's output. Put the hooks on modules, or on taps, that have a layer "
                "with weights between them and the next tap below.",
            )
        self._remarks = self._describe(survey)
        inspection.require_right()

    def left_alone(self, survey: Survey) -> frozenset[str]:
        """Return the calls of taps that are left alone."""
        return survey.unreached | self._flat(survey) if survey.flat else survey.unreached

    def _flat(self, survey: Survey) -> frozenset[str]:
        """Return the default taps with no layer between them and the output, only its own non-linearity."""
        plan = self._mechanism.plan
        if plan.explicit:
            return frozenset()
        return frozenset(tap for tap in survey.flat if not has_frozen_behind(plan.model, module_of_call(tap)))

    def describe(self) -> list[str]:
        """Return the remarks of the attachment's table about taps that are left alone."""
        return self._remarks

    def _describe(self, survey: Survey) -> list[str]:
        reasons = {
            "no error lies above it, and what lies below learns from its own loss": survey.unused,
            "no layer follows before the output, whose own layer learns exactly": self._flat(survey),
            "it runs where no graph is built, and so no signal can enter": survey.graphless,
        }
        return [f"Left alone, {name_some(taps)}: {reason}." for reason, taps in reasons.items() if taps]
