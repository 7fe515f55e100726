"""The memory format of signals: that of the tap's output, as for every gradient that autograd makes.

Otherwise, with channels last, a segment's backward pass would mix contiguous signals with activations that are not:
poolings then copy all their tensors, and a step of a LeNet takes up to 1.3 times as long.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def format_of(output: Tensor) -> torch.memory_format:
    """Return the memory format of ``output``: channels last, or else contiguous."""
    last = _CHANNELS_LAST.get(output.dim())
    if last is None or output.is_contiguous() or not output.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last


def channels_last(maps: Tensor) -> Tensor:
    """Return rows of maps ``(k, channels, positions)`` as rows ``(k, positions x channels)``."""
    return maps.mT.reshape(len(maps), -1)


def as_images(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """Return rows ``(N, positions x channels)`` as images of ``shape`` ``(N, channels, *positions)``, not copied."""
    samples, channels, *positions = shape
    return rows.view(samples, *positions, channels).movedim(-1, 1)
