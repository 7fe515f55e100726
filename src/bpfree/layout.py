"""Which dimensions of a tap are samples and which are features."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bpfree.errors import TapShapeError
from bpfree.taps import Site


def batch_dims(output: torch.Size, taps: Sequence[torch.Size], asked: int | None) -> int:
    """The number of leading dimensions that the error and every tap, of these shapes, share as batch dimensions.

    For token sequences, graphs and sample points these are all dimensions of the output but the last, and B is
    shared by every token, node or point. Where a tap does not have them (images: the error is ``(N, c)``, a tap
    ``(N, C, H, W)``) it is the first one alone, and what lies behind it is flattened.
    """
    if not output:
        raise TapShapeError("the error is taken at a single number; it needs a batch dimension.")
    dims = asked if asked is not None else max(len(output) - 1, 1)
    if asked is None and any(tap[:dims] != output[:dims] for tap in taps):
        dims = 1
    return dims


def sites_of(names: Sequence[str], taps: Sequence[torch.Size], dims: int, output: torch.Size) -> tuple[Site, ...]:
    """The sites of one forward pass with these shapes, calls of one module numbered.

    Raises:
        TapShapeError: A tap does not share the error's batch dimensions, or has no features.
    """
    calls: dict[str, int] = {}
    sites: list[Site] = []
    for module, tap in zip(names, taps, strict=True):
        calls[module] = calls.get(module, 0) + 1
        name = module if calls[module] == 1 else f"{module}#{calls[module]}"
        if tap[:dims] != output[:dims]:
            raise TapShapeError(
                f"tap {name!r} has the shape {tuple(tap)} and the error {tuple(output)}: they need the "
                f"same first {dims} dimension(s), the batch. Leave that tap out, take the error elsewhere "
                "(error_at=), or say how many dimensions are batch (batch_dims=)."
            )
        if 0 in tap[dims:]:
            raise TapShapeError(f"tap {name!r} has the shape {tuple(tap)}: it has no features to send a signal to.")
        sites.append(Site(name, module, tuple(tap[:dims]), tuple(tap[dims:])))
    return tuple(sites)
