"""Timing a step beside its reference."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bpfree.lab.time_and_memory import paired_ratio, seconds
from common.subjects import Step


def timed(step: Step, reference: Step, pairs: int, *, warmup: int = 2) -> dict[str, Any]:
    """The ratio of their times within ``pairs`` pairs, see :func:`bpfree.lab.time_and_memory.paired_ratio`.

    A step whose work comes again after several steps is timed over all of them, beside as many of the reference.
    """
    return asdict(paired_ratio(step, _times(reference, step.period), repeats=pairs, warmup=warmup))


def pairs_within(step: Step, reference: Step, budget: float, *, least: int = 5, most: int = 60) -> int:
    """How many pairs fit into ``budget`` seconds; both run once to find out."""
    _times(reference, step.period)()
    once = seconds(step) + seconds(_times(reference, step.period))
    return min(most, max(least, round(budget / once)))


def _times(step: Step, count: int) -> Step:
    return Step(step.model, step.forward_backward, count)
