"""The idx format of the original MNIST files.

A file is a big-endian header, then bytes: two zeros, the element type (8: unsigned bytes), the number of
dimensions, and the size of each dimension as a 32-bit number.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from bpfree.lab.errors import DataError


def parse_idx(content: bytes, name: str) -> Tensor:
    """Return the array in ``content``, uint8 of the shape that its header names.

    Args:
        content: The file's bytes, uncompressed.
        name: The file's name in messages.

    Raises:
        DataError: No idx file of unsigned bytes, or fewer or more bytes than its header says.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{name} is not an idx file of unsigned bytes. Fetch the original file again.")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"{name} is truncated inside its header. Fetch the original file again.")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    expected, found = torch.Size(shape).numel(), len(content) - start
    if expected != found:
        state = "truncated" if found < expected else "longer than it should be"
        raise DataError(f"{name} is {state}: {found} bytes in place of {expected}. Fetch the original file again.")
    # A bytearray, because a tensor must be able to write to its memory.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(shape)
