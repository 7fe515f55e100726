"""The order of a stage's work: the runtime executes it, and the simulator computes its times.

A stage decides by the work it has done so far. Index conventions: ``s`` of ``S`` stages, the first is 0. A batch has
``M`` micro-batches; they are counted over all batches, so number k belongs to batch k // M. Counts are integers, or
tensors of integers with one entry per stage.
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

Count = TypeVar("Count", int, Tensor)


def ahead(s: Count, S: int) -> Count:
    """Return how many micro-batches stage s forwards before the last stage has the error of the first."""
    return S - 1 - s


def due(forwarded: Count, lead: Count, M: int, staleness: int) -> Count:
    """Return from how many micro-batches a stage must have learned, by direct feedback, before its next forward pass.

    Args:
        forwarded: The number of micro-batches that it has forwarded.
        lead: Its lead (:func:`ahead`): it learns from a micro-batch when it has forwarded so many more.
        M: The number of micro-batches in a batch.
        staleness: The number of updates that a forward pass's weights may lack. With 0, the stage learns from a
            whole batch before the next one begins.
    """
    bound = (forwarded // M - staleness) * M
    behind = forwarded - lead
    return behind + (bound - behind) * (bound > behind)
