"""Direct feedback that learns: the matrices take a step in every backward pass, before they project the error."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bpfree.axes.sites import Site
from bpfree.compiled_code import outside_compiled_code
from bpfree.distributed import average_over_ranks, ranks
from bpfree.errors import BpfreeWarning, FeedbackDivergedError, TapShapeError, shape_of
from bpfree.feedback.lazy_buffers import REQUIRES_NO_GRADIENT, LazyBuffers, at_least_single
from bpfree.feedback.projection import Projection
from bpfree.feedback.spatial import Form
from bpfree.finite import may_overflow
from bpfree.mechanisms.direct.delivery import Layout, PassMemory
from bpfree.mechanisms.direct.forward_pass import TrainingPass
from bpfree.mechanisms.direct.mechanism import DirectMechanism
from bpfree.mechanisms.direct.pass_state import PassState
from bpfree.mechanisms.learned.rule import LearnedRule, Size
from bpfree.plan import Plan
from bpfree.precision import in_own_precision

_DIVERGED = 1e4
"""The largest norm of a matrix, relative to its first norm or to the largest norm of its evidence."""

_LOOK = 100
"""On an accelerator, norms are checked once in so many steps."""

_PATIENCE = 5
"""The step at which a matrix is checked that an optimizer should have moved."""


class LearnedProjection(Projection):
    """Matrices B_l that learn: ``projection[name]`` is B_l itself, scaled, of shape ``(c, m_l)``; A_l with a rank."""

    def __init__(self, rule: LearnedRule, plan: Plan) -> None:
        super().__init__(rule.feedback, plan.seed)
        self._rule = rule
        if rule.stepped_by == "optimizer":
            like = at_least_single(next(plan.model.parameters(), torch.empty(0)))
            for name in plan.taps:
                self.reserve(name, like, 2)

    def prepare(self, sites: Sequence[Site], c: int, like: Tensor) -> None:
        """Draw the matrices that do not exist yet, in single precision at least."""
        super().prepare(sites, c, at_least_single(like))

    def name(self, site: Site) -> str:
        """Return the name under which a tap's matrix is kept; for an optimizer, it is the tap's name alone."""
        return site.module if self._rule.stepped_by == "optimizer" else super().name(site)

    def _drawn(self, name: str, matrix: Tensor) -> Tensor:
        if self._rule.begins_at_zero:
            return matrix.zero_()
        # The scale is part of what learns.
        c, widest = self._sizes or matrix.shape  # with a rank too, for signals of the same size
        return super()._drawn(name, matrix) * self.feedback.scale(matrix.shape[1], widest, c)

    def _scale(self, form: Form) -> float:
        return 1.0

    @property
    def copies(self) -> int:
        """The number of copies of each matrix: two if the evidence is averaged, else one."""
        return 1 if self._rule.memory(1) == self._rule.memory(2) == 1.0 else 2

    def describe(self, site: Site) -> str:
        """Return the form of a tap's feedback, for the attachment's table."""
        return f"{super().describe(site)}, learns"


class _Step(NamedTuple):  # made for every matrix in every pass, and a tuple is quicker at it
    """A step that a matrix is to take against ``direction``."""

    name: str
    matrix: Tensor
    evidence: Tensor
    direction: Tensor
    size: Size


class LearnedMechanism(DirectMechanism):
    """A direct mechanism whose feedback takes a step before it projects an error.

    ``feedback[name]`` is B_l. ``averages[name]`` is the running average of its evidence, for rules that take one.
    ``steps.numbers[name]`` is the number of its steps: not every pass reaches every tap.

    Attributes:
        width_elsewhere: The number of coefficients of the taps in other stages of a pipeline.
        columns_elsewhere: The columns of perturbations of the taps in stages before and behind this one.
    """

    rule: LearnedRule

    def __init__(self, rule: LearnedRule, plan: Plan) -> None:
        super().__init__(rule, plan)
        self.feedback = LearnedProjection(rule, plan)
        self.averages = LazyBuffers(passes=0)
        self.steps = LazyBuffers()
        self.norms = LazyBuffers()
        self._usual: dict[str, float] = {}
        self.width_elsewhere = 0
        self.columns_elsewhere = (0, 0)
        self._averages_evidence = type(rule).memory is not LearnedRule.memory
        # The layout whose matrices are all known.
        self._begun_with: Layout | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy, whose passes begin anew."""
        return {**super().__getstate__(), "_begun_with": None}

    def _remember(self, state: PassState, layout: Layout, outputs: Sequence[Tensor]) -> PassMemory:
        if layout is not self._begun_with:
            self._begun_with = layout
            for name in map(self.feedback.name, layout.sites):
                if name not in self.norms:
                    self.norms[name] = self.feedback[name].detach().norm()
        return super()._remember(state, layout, outputs)

    @outside_compiled_code
    def connect(
        self, call: PassState, run: TrainingPass, name: str, output: Tensor, *, first: bool, alone: bool
    ) -> Tensor:
        """Return ``output``, an error, with a graph, outside compiled code."""
        # A compiled backward pass would leave out the Python code in it: the learning.
        return super().connect(call, run, name, output, first=first, alone=alone)

    def learn(self, memory: PassMemory, error: Tensor) -> None:
        """Let every matrix take a step by its evidence; evidence that has overflowed gives no step."""
        evidence, memory.evidence = memory.evidence, {}
        if not evidence:
            return
        # The processes of a pipeline hold other taps, and have nothing to average.
        processes = 1 if self.plan.is_stage else ranks()
        rows = (memory.rows or len(error)) * processes
        matrices = {name: self.feedback[name] for name in evidence}
        width = self.width_elsewhere + sum([matrix.shape[1] for matrix in matrices.values()])
        overflows = may_overflow(error)
        steps: list[_Step] = []
        with torch.no_grad(), in_own_precision(error):
            for name, given in evidence.items():
                given = average_over_ranks(given) if processes > 1 else given
                sound = given.norm().isfinite() if overflows else None
                if sound is not None and sound.device.type == "cpu" and not sound:
                    continue
                step = self.steps.count(name)
                averaged = self._averaged(name, given, step, sound) if self._averages_evidence else given
                steps.append(self._step(name, matrices[name], averaged, Size(rows, width, step), sound))
            self._take(steps)

    def _averaged(self, name: str, evidence: Tensor, step: int, sound: Tensor | None) -> Tensor:
        weight = self.rule.memory(step)
        if name not in self.averages:
            if weight == self.rule.memory(step + 1) == 1.0:  # no average at all
                return evidence
            self.averages[name] = torch.zeros_like(evidence)
        average = self.averages[name]
        return average.lerp_(evidence if sound is None else torch.where(sound, evidence, average), weight)

    def _step(self, name: str, matrix: Tensor, evidence: Tensor, size: Size, sound: Tensor | None) -> _Step:
        if name not in self._usual:
            # After a load the matrix has grown already.
            self._usual[name] = max(float(self.norms[name]), float(matrix.detach().norm()))
        direction = self.rule.direction(matrix.detach(), evidence)
        if not isinstance(direction, Tensor) or direction.shape != matrix.shape:  # callers are not type-checked
            raise TapShapeError(
                f"the direction of {self.rule} for {name!r} is {shape_of(direction)}; direction() must return "
                f"a tensor of the feedback's shape {tuple(matrix.shape)}."
            )
        if sound is not None:
            direction = torch.where(sound, direction, 0.0)
        return _Step(name, matrix, evidence, direction, size)

    def _take(self, steps: Sequence[_Step]) -> None:
        """Take the steps of a pass, all at once: by themselves, small matrices take longer to be called for."""
        by_rate: dict[float, list[_Step]] = {}
        for step in steps:
            if isinstance(step.matrix, nn.Parameter):
                self._hand_to_optimizer(step, step.matrix)
            else:
                by_rate.setdefault(self.rule.rate(step.size), []).append(step)
        for rate, group in by_rate.items():
            torch._foreach_sub_([step.matrix for step in group], [step.direction for step in group], alpha=rate)
        norms = torch._foreach_norm([step.matrix.detach() for step in steps]) if steps else ()
        looked = [number for number, step in enumerate(steps) if self._looks(step.matrix, step.size.step)]
        if looked:
            of_evidence = torch._foreach_norm([steps[number].evidence for number in looked])
            for number, evidence in zip(looked, of_evidence, strict=True):
                self._check(steps[number].name, float(norms[number]), float(evidence))
        if self.rule.keeps_norm:
            for step, norm in zip(steps, norms, strict=True):
                step.matrix.data.mul_(self.norms[step.name] / norm)

    def _hand_to_optimizer(self, step: _Step, matrix: nn.Parameter) -> None:
        self._expect_steps(step.name, matrix, step.size)
        matrix.grad = step.direction if matrix.grad is None else matrix.grad + step.direction

    @staticmethod
    def _looks(matrix: Tensor, step: int) -> bool:
        """Return whether to look at the numbers of this step: on an accelerator, this stalls the queue of kernels."""
        return matrix.device.type == "cpu" or step % _LOOK == 0

    def _expect_steps(self, name: str, matrix: Tensor, size: Size) -> None:
        if size.step == _PATIENCE and self.rule.begins_at_zero and not bool(matrix.any()):
            warnings.warn(
                f"the feedback of tap {name!r} has had a gradient for {_PATIENCE - 1} steps and is still zero: no "
                "optimizer has it. Give it one: torch.optim.Adam(attachment.parameters(), 1e-4). "
                f"{REQUIRES_NO_GRADIENT}",
                BpfreeWarning,
                stacklevel=2,
            )

    def _check(self, name: str, norm: float, evidence: float) -> None:
        """Raise FeedbackDivergedError if a matrix's norm has outgrown both its first norm and its evidence."""
        usual = self._usual[name] = max(self._usual[name], evidence if math.isfinite(evidence) else 0.0)
        if not math.isfinite(norm) or norm > _DIVERGED * usual:
            raise FeedbackDivergedError(
                f"the feedback of tap {name.partition(':')[0]!r} diverges: its norm is {norm:.1e}, that of what it "
                f"learns from at most {usual:.1e}. No signal was sent, and the weights are as they were. "
                f"Lower the learning rate of {type(self.rule).__name__}'s feedback."
            )

    def matrices(self, sites: Sequence[Site]) -> list[Tensor]:
        """Return B_l, ``(c, m_l)``, of these taps."""
        return [self.feedback[self.feedback.name(site)].detach() for site in sites]

    def _gathered(self, sites: Sequence[Site], evidence: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the evidence by matrix. Calls of one module share a matrix, which learns from their mean."""
        found: dict[str, list[Tensor]] = {}
        for site, given in zip(sites, evidence, strict=True):
            found.setdefault(self.feedback.name(site), []).append(given)
        return {name: torch.stack(parts).mean(0) if len(parts) > 1 else parts[0] for name, parts in found.items()}

    def is_due(self, ahead: int = 0) -> bool:
        """Return whether the feedback learns from the next training pass, or the one ``ahead`` after it."""
        return not self._fixed and (self.averages.numbers["passes"] + ahead) % self.rule.every == 0

    @outside_compiled_code  # a counter in compiled code is a constant: each pass would be compiled anew
    def _on_begin(self, state: PassState, call: Any) -> None:
        super()._on_begin(state, call)
        state.learning = state.counts and self.is_due()
        self.averages.numbers["passes"] += state.counts
