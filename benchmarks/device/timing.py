"""The ratio of two steps' times on a device, in as many pairs as fit into a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from bpfree.lab.time_and_memory import paired_ratio, seconds
from device.kit import Kit


def timed_within(
    kit: Kit, subject: Callable[[], object], reference: Callable[[], object], budget: float
) -> dict[str, Any]:
    """Return the ratio of their times, see :func:`bpfree.lab.time_and_memory.paired_ratio`.

    Args:
        kit: Has the numbers of pairs, and the device, which is waited for before a clock is read.
        subject: The step that is measured.
        reference: The step that it is compared with; it is as many steps.
        budget: The seconds that the pairs may take; the smallest number of them runs in any case.
    """
    for _ in range(2):
        subject()
        reference()
    once = seconds(subject, kit.synchronize) + seconds(reference, kit.synchronize)
    least, most = kit.pairs
    pairs = min(most, max(least, int(budget / once)))
    return asdict(paired_ratio(subject, reference, repeats=pairs, warmup=1, synchronize=kit.synchronize))
