"""The settings of a pipeline's processes, compared before the first batch: they train one model together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

import bpfree
from bpfree.errors import StageError
from bpfree.pipeline.stage import StageAttachment, mechanism_of

Built = Mapping[str, Any]
"""The settings of a process, by the words that messages use for them."""

_STAGE, _ERROR_AT, _STEP = "stage_index", "error_at", "the step of alternating cuts"


def built_with(attachment: StageAttachment, **schedule: Any) -> Built:
    """Return the settings of this process; ``schedule`` are those that the schedule adds."""
    plan, stage = attachment.mechanism.plan, attachment.stage
    return {
        "the version of torch": torch.__version__,
        "the version of bpfree": bpfree.__version__,
        "num_stages": stage.num_stages,
        _STAGE: stage.stage_index,
        **schedule,
        # Not the rule's text: in that of a projector of the user's is an address, of this process alone.
        "the rule": attachment._fingerprint(),
        "seed": plan.seed,
        "batch_dims": plan.batch_dims,
        "window": plan.window,
        "alternate_order": plan.alternate_order,
        _STEP: _step_of_cuts(attachment),
        _ERROR_AT: attachment.error_at,
    }


def require_alike(processes: Sequence[Built]) -> None:
    """Raise StageError, naming the first difference, unless all processes were built alike."""
    for name, first in processes[0].items():
        for number, built in enumerate(processes):
            if name == _STAGE:
                _require_own_stage(number, built[name])
            elif name == _ERROR_AT:
                _require_place_of_last(number, built[name], processes[-1][name])
            elif name == _STEP:
                _require_same_step([built[_STEP] for built in processes])
            elif built[name] != first:
                raise StageError(
                    f"{name} is {first} in process 0 and {built[name]} in process {number}: the stages would train "
                    "on each other's numbers as if they were their own. Give the same in every process."
                )
    stages, count = processes[0]["num_stages"], len(processes)
    if stages != count:
        raise StageError(f"{stages} stages on {count} processes: these schedules take one stage a process.")


def _require_own_stage(number: int, stage: int) -> None:
    if stage != number:
        raise StageError(
            f"process {number} of the stages' group has stage {stage}, and stage {number} must be there. Give "
            "PipelineStage the process's rank in that group as its stage_index."
        )


def _step_of_cuts(attachment: StageAttachment) -> int | None:
    """Return the step that alternating cuts have come to; None where nothing counts steps, as nothing learns."""
    alternation = mechanism_of(attachment).alternation
    counts = any(parameter.requires_grad for parameter in attachment.model.parameters())
    return alternation.numbers["step"] if alternation is not None and counts else None


def _require_same_step(steps: Sequence[int | None]) -> None:
    known = {step for step in steps if step is not None}
    if len(known) > 1:
        raise StageError(
            f"the processes have taken {' and '.join(map(str, sorted(known)))} steps of alternating cuts, and would "
            "cut taps of different steps. Load the checkpoint of one step in every process, or begin anew in all."
        )


def _require_place_of_last(number: int, place: str | None, last: str | None) -> None:
    # It has a meaning in the last stage alone, and may be left out in the others.
    if place is not None and place != last:
        raise StageError(
            f"error_at is {place!r} in process {number} and {last!r} in the last one: the error would be another one "
            "than was meant. Give the same in every process."
        )
