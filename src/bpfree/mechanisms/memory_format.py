"""How a signal lies in memory: as the tap's output does, like every gradient that autograd makes.

Channels last, a segment's backward pass would otherwise meet signals in order and activations that are not: poolings
then copy all they touch, and a LeNet's step takes up to 1.3 times as long.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def format_of(output: Tensor) -> torch.memory_format:
    """Channels last where the numbers of ``output`` lie so, and otherwise in order."""
    last = _CHANNELS_LAST.get(output.dim())
    if last is None or output.is_contiguous() or not output.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last


def as_gradient(signal: Tensor, root: Tensor) -> Tensor:
    """The signal with the shape, number format and memory format of the tap's output ``root``."""
    return signal.view(root.shape).to(root.dtype, memory_format=format_of(root))


def in_formats(signals: Sequence[Tensor | None], formats: Sequence[torch.memory_format]) -> list[Tensor | None]:
    """Signals in the shapes of their taps, each in the tap's memory format; those that are one stay one."""
    made: dict[tuple[int, torch.memory_format], Tensor] = {}
    for signal, wanted in zip(signals, formats, strict=True):
        if signal is not None and (id(signal), wanted) not in made:
            made[id(signal), wanted] = signal.to(memory_format=wanted)
    return [
        None if signal is None else made[id(signal), wanted] for signal, wanted in zip(signals, formats, strict=True)
    ]
