"""In which order a stage works: what the runtime executes and the simulator times.

A stage decides by what it has done so far. Index conventions: ``s`` of ``S`` stages, the first is 0. A batch has ``M``
micro-batches; they are counted over all batches, so that number k belongs to batch k // M. Counts are integers, or
tensors of integers with one entry a stage.
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

Count = TypeVar("Count", int, Tensor)


def ahead(s: Count, S: int) -> Count:
    """How many micro-batches stage s forwards before the last stage has the error of the first."""
    return S - 1 - s


def due(forwarded: Count, lead: Count, M: int, staleness: int) -> Count:
    """For how many micro-batches a stage must have learned before its next forward pass, by direct feedback.

    Args:
        forwarded: How many it has forwarded.
        lead: How far it is :func:`ahead`; it learns from a micro-batch when it has forwarded as many more.
        M: Micro-batches a batch.
        staleness: How many updates may be missing from the weights of a forward pass; 0 for none, so that a batch is
            learned from before the next one begins.
    """
    bound = (forwarded // M - staleness) * M
    behind = forwarded - lead
    return behind + (bound - behind) * (bound > behind)
