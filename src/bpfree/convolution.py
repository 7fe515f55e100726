"""torch's convolutions: which layers they are, and their padding."""

from __future__ import annotations

from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def padded(layer: Convolution, input: Tensor) -> tuple[Tensor, int | tuple[int, ...]]:
    """``layer``'s input, and the zeros that a gradient function of torch has still to put on either side of it.

    Those functions know no other padding, so that what is not a plain number of zeros becomes part of the input.
    """
    if layer.padding == "valid":
        return input, 0
    if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return input, layer.padding
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(input, layer._reversed_padding_repeated_twice, mode=mode), 0
