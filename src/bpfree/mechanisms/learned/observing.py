"""Direct mechanisms that run an estimating pass after a forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bpfree.axes.sites import Site
from bpfree.compiled_code import outside_compiled_code
from bpfree.errors import OptionError
from bpfree.feedback.random import derived_seed
from bpfree.feedback.spatial import Form
from bpfree.forward_mode.estimate import Estimator, Observation
from bpfree.forward_mode.hadamard import Turn
from bpfree.forward_mode.perturbations import Perturbations
from bpfree.forward_mode.sample_part import Rows, SamplePart, are_all, first_size, samples_of
from bpfree.forward_mode.tangents import Tangents
from bpfree.mechanisms.direct.delivery import PassMemory
from bpfree.mechanisms.direct.final_activation import final_activation
from bpfree.mechanisms.direct.mechanism import DirectMechanism
from bpfree.mechanisms.direct.pass_state import PassState
from bpfree.mechanisms.direct.rule import DirectRule
from bpfree.mechanisms.direct.survey import error_key
from bpfree.plan import Plan
from bpfree.rerun.snapshot import RunSnapshot
from bpfree.rerun.trial import without_trace
from bpfree.verification.adjoint import check_adjoint
from bpfree.verification.finding import Finding
from bpfree.verification.sample_part import check_sample_part
from bpfree.verification.second_run import check_second_run


class ObservingMechanism(DirectMechanism):
    """Runs the estimating pass when a forward pass has ended, and hands on its observation.

    Args:
        rule: The rule.
        plan: The model and the options.
        kind: The distribution of the perturbations.
        rows: The samples of an estimating pass: their fraction of the batch, or their number.

    Attributes:
        takes_all_rows: True if every estimating pass has all samples.
    """

    exact_part = False
    """True if a part of the batch is to have the numbers of the whole batch's pass, to the dropout masks."""

    def __init__(self, rule: DirectRule, plan: Plan, kind: Perturbations, rows: Rows) -> None:
        super().__init__(rule, plan)
        self._kind: Perturbations = kind
        self._rows = rows
        self.takes_all_rows = are_all(rows)
        self._estimator = self._make_estimator(plan)
        # What part_of() was asked last, and its answer: outputs that were kept are of the very part that is observed.
        self._drawn: tuple[tuple[int, int], SamplePart | None] | None = None

    def _make_estimator(self, plan: Plan) -> Estimator:
        return Estimator(plan, self._kind, self._form)

    def replan(self, plan: Plan) -> None:
        """Serve the model as ``plan`` describes it, and keep the feedback."""
        self._estimator = self._make_estimator(plan)
        super().replan(plan)

    def _form(self, site: Site) -> Form:
        """Return the form of a tap's perturbation: one number per feature."""
        return Form.of(site.features, None, site.channel)

    def _is_wanted(self, state: PassState) -> bool:
        """Return whether to observe the pass that begins; called once per pass."""
        return True

    def _seed(self) -> int:
        """Return the seed of this pass's perturbations."""
        raise NotImplementedError

    def _turn(self) -> Turn | None:
        """Return the place of this pass among those whose perturbations are orthogonal; None for random ones."""
        return None

    def _seen(self, memory: PassMemory, observation: Observation) -> None:
        """Take the observation of the forward pass that ``memory`` is about."""
        memory.observation = observation

    def check_estimates(self, call: Any, sites: Sequence[Site], *, thorough: bool) -> list[Finding]:
        """Check that the model runs a second time as it did the first, and that its tangents fit its gradients."""
        streams = self.plan.streaming and not thorough
        # A stream compares its own runs, and more of each: their order matters only where numbers disagree.
        found = [] if streams else check_second_run(self.plan, call)
        if found or not sites:
            return found
        # This computes gradients too: no hook of the user must see them.
        with without_trace(self.plan, call):
            start = RunSnapshot.now(self.plan, call)
            found = check_adjoint(self._estimator, call, start, sites, name_module=not streams)
        if not found and not self.takes_all_rows:
            with without_trace(self.plan, call):
                found = check_sample_part(self.plan, call, sites, exact=self.exact_part)
        return (check_second_run(self.plan, call) or found) if streams and found else found

    def install(self) -> None:
        """Put the hooks in, also those that keep the outputs of costly layers."""
        self._handles += self._estimator.tape.install()
        super().install()

    def remove(self) -> None:
        """Take the hooks out and forget the forward pass."""
        super().remove()
        self._estimator.tape.drop()

    @outside_compiled_code
    def _on_begin(self, state: PassState, call: Any) -> None:
        super()._on_begin(state, call)
        if state.counts and self._is_wanted(state):
            # A pass that stores no graph must not keep anything that grows with the depth.
            state.start = self._estimator.begin(call, keep=not self.plan.streaming, part=self._expected_part(call))
        else:
            self._estimator.tape.drop()

    def _on_end(self, call: PassState, args: Any, kwargs: Any, output: Any) -> Any:
        raised = call.has_raised  # torch goes through the hooks then, which an estimating pass would add to
        try:
            output = super()._on_end(call, args, kwargs, output)
            if call.start is not None and not raised:
                self._observe(call, call.start, (args, kwargs))
        finally:
            if call.start is not None and not self.awaits_observing:
                self._estimator.tape.drop()
        return output

    @property
    def awaits_observing(self) -> bool:
        """True if a pass has ended that is still to be observed."""
        return False

    @outside_compiled_code
    def _observe(self, state: PassState, start: RunSnapshot, call: Any) -> None:
        """Run the estimating pass of a pass on ``call`` that has begun from ``start`` and ended."""
        if not state.memories:
            return
        groups, group_of = _grouped({name: memory for name, (memory, _) in state.memories.items()})
        # The estimating pass runs the model's forward(), behind its hooks: a call of the model is a pass of its own.
        with self.running(PassState(again=True, entered=True)):
            sites = [list(group.values()) for group in groups]
            part = self._part(call, [site for group in sites for site in group])
            seed, turn = self._seed(), self._turn()
            responses = [self._estimator.run(call, start, group, seed, part, turn=turn) for group in sites]
        for name, (memory, c) in state.memories.items():
            response, rows = responses[group_of[name]], memory.sites[0].error
            output = state.errors[name].detach()
            final = final_activation(self, name, output)
            if part is not None:
                output, rows = (
                    self._of_error(response.values, name, part.along(output, rows.axes[0])),
                    part.of_error(rows),
                )
            tangent = self._of_error(response.tangents, name, torch.zeros_like(output)).view_as(output)
            if final is not None:
                tangent = final.change_before(tangent, output)
            observation = response.observation(rows.of(tangent, c), memory.sites)
            sender = self.of_error(name, first=name == self.first_error)
            assert isinstance(sender, ObservingMechanism)
            sender._seen(memory, observation)

    def _part(self, call: Any, sites: Sequence[Site]) -> SamplePart | None:
        """Draw the samples of this pass; None for all."""
        if self.takes_all_rows:
            return None
        counts = {site.error.shape[0] for site in sites}
        samples = samples_of(call, counts)
        if samples is None:
            raise OptionError(
                f"rows={self._rows}: the errors have {' and '.join(map(str, sorted(counts)))} samples, so that no part "
                "of the batch is the same for all. Leave rows out."
            )
        return self.part_of(samples)

    def part_of(self, samples: int) -> SamplePart | None:
        """Return the samples of so many that the next estimating pass takes; None for all."""
        asked = samples, derived_seed(self._seed(), "rows")
        if self._drawn is None or self._drawn[0] != asked:
            self._drawn = asked, SamplePart.draw(self._rows, *asked)
        return self._drawn[1]

    def _expected_part(self, call: Any) -> SamplePart | None:
        """Return the samples that will be observed, if the first axis of the first argument is that of the samples."""
        if self.takes_all_rows:
            return None
        first = first_size(call)
        return None if first is None else self.part_of(first)

    def _of_error(self, found: Sequence[Tangents], name: str, missing: Tensor) -> Tensor:
        """Return the tensor of the error ``name``; ``missing`` if the estimating pass did not reach it."""
        for place, tensors in zip(self.plan.errors, found, strict=True):
            for path, tensor in tensors.items():
                if error_key(place, path) == name:
                    return tensor
        return missing


def _grouped(memories: Mapping[str, PassMemory]) -> tuple[list[dict[str, Site]], dict[str, int]]:
    """Return groups of the taps below the errors, and the number of the group for each error.

    If errors lay out a tap differently, they are in different groups, and the groups are perturbed one at a time.
    """
    groups: list[dict[str, Site]] = []
    group_of: dict[str, int] = {}
    for error, memory in memories.items():
        sites = {site.name: site for site in memory.sites}
        number = next((i for i, group in enumerate(groups) if _agree(group, sites)), len(groups))
        if number == len(groups):
            groups.append({})
        groups[number].update(sites)
        group_of[error] = number
    return groups, group_of


def _agree(group: Mapping[str, Site], sites: Mapping[str, Site]) -> bool:
    shared = group.keys() & sites.keys()
    return all(group[name].arrangement == sites[name].arrangement for name in shared)
