"""Random numbers of the rules' own: seeded by purpose, the same on every machine and in every precision."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derived_seed(seed: int, *labels: object) -> int:
    """Return a seed for one purpose: independent streams without an order among them."""
    text = "/".join(map(str, (seed, *labels)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def draw(shape: Sequence[int], distribution: str, generator: torch.Generator) -> Tensor:
    """Draw numbers of N(0, 1) for ``"normal"``, else uniform on (-1, 1), on the generator's device.

    Always in double precision: a model in another precision gets the same numbers, rounded.
    """
    out = torch.empty(*shape, dtype=torch.float64, device=generator.device)
    return out.normal_(generator=generator) if distribution == "normal" else out.uniform_(-1, 1, generator=generator)
