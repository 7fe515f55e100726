"""The settings of a pipeline's processes, compared before the first batch: they train one model together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

import bpfree
from bpfree.errors import StageError
from bpfree.mechanisms.learned.mechanism import LearnedMechanism
from bpfree.pipeline.stage import StageAttachment, mechanism_of

Built = Mapping[str, Any]
"""The settings of a process, by the words that messages use for them."""

_STAGE, _ERROR_AT = "stage_index", "error_at"
_COUNTS = ("steps of alternating cuts", "passes of learned feedback")
"""Counts that every process keeps by itself; all processes must have the same ones."""


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
        **dict(zip(_COUNTS, _counted(attachment), strict=True)),
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
            elif name in _COUNTS:
                _require_same_count(name, [built[name] for built in processes])
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


def _counted(attachment: StageAttachment) -> tuple[int | None, int | None]:
    """Return what this process has come to of each of ``_COUNTS``; None where it does not count."""
    mechanism = mechanism_of(attachment)
    # No optimizer steps what does not learn.
    learns = any(parameter.requires_grad for parameter in attachment.model.parameters())
    steps = mechanism.alternation.numbers["step"] if mechanism.alternation is not None and learns else None
    passes = mechanism.averages.numbers["passes"] if isinstance(mechanism, LearnedMechanism) else None
    return steps, passes


def _require_same_count(name: str, counts: Sequence[int | None]) -> None:
    known = {count for count in counts if count is not None}
    if len(known) > 1:
        raise StageError(
            f"the processes have come to {' and '.join(map(str, sorted(known)))} {name}, and would train together what "
            "is of different moments. Load the checkpoint of one step in every process, or begin anew in all."
        )


def _require_place_of_last(number: int, place: str | None, last: str | None) -> None:
    # It has a meaning in the last stage alone, and may be left out in the others.
    if place is not None and place != last:
        raise StageError(
            f"error_at is {place!r} in process {number} and {last!r} in the last one: the error would be another one "
            "than was meant. Give the same in every process."
        )
