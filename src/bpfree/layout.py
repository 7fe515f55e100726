"""Which dimensions of a tap are samples and which are features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bpfree.errors import TapShapeError
from bpfree.taps import Site


def batch_dims(output: Tensor, taps: Sequence[Tensor], asked: int | None) -> int:
    """The number of leading dimensions that the error and every tap share as batch dimensions.

    For token sequences, graphs and sample points these are all dimensions of the output but the last, and B is
    shared by every token, node or point. Where a tap does not have them (images: the error is ``(N, c)``, a tap
    ``(N, C, H, W)``) it is the first one alone, and what lies behind it is flattened.
    """
    if output.dim() == 0:
        raise TapShapeError("the error is taken at a single number; it needs a batch dimension.")
    dims = asked if asked is not None else max(output.dim() - 1, 1)
    if asked is None and any(tap.shape[:dims] != output.shape[:dims] for tap in taps):
        dims = 1
    return dims


def sites_of(names: Sequence[str], taps: Sequence[Tensor], dims: int, output: Tensor) -> tuple[Site, ...]:
    """The sites of one forward pass, calls of one module numbered.

    Raises:
        TapShapeError: A tap does not share the error's batch dimensions.
    """
    calls: dict[str, int] = {}
    sites: list[Site] = []
    for module, tap in zip(names, taps, strict=True):
        calls[module] = calls.get(module, 0) + 1
        name = module if calls[module] == 1 else f"{module}#{calls[module]}"
        if tap.shape[:dims] != output.shape[:dims]:
            raise TapShapeError(
                f"tap {name!r} has the shape {tuple(tap.shape)} and the error {tuple(output.shape)}: they need the "
                f"same first {dims} dimension(s), the batch. Leave that tap out, take the error elsewhere "
                "(error_at=), or say how many dimensions are batch (batch_dims=)."
            )
        sites.append(Site(name, module, tuple(tap.shape[:dims]), tuple(tap.shape[dims:])))
    return tuple(sites)
