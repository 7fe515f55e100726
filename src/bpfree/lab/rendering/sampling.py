"""Draw the places on rays at which a field is asked."""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = 1e-5  # is added to all weights, as in the paper's code: rays through nothing are sampled evenly


def spread_evenly(near: Tensor, far: Tensor, count: int, *, drawn: bool) -> Tensor:
    """Return ``count`` places on each ray, in ascending order, one in each of as many equal parts of it.

    Args:
        near: Where rays begin, ``(n, 1)``.
        far: Where they end, ``(n, 1)``.
        count: The number of parts.
        drawn: Draw each place uniformly within its part, from the global random state (stratified sampling, equation 2
            of Mildenhall et al. 2020). False takes the middle of each part.

    Returns:
        t, ``(n, count)``.
    """
    parts = torch.arange(count, dtype=near.dtype, device=near.device)
    within = torch.rand(len(near), count, dtype=near.dtype, device=near.device) if drawn else 0.5
    return near + (far - near) * (parts + within) / count


def draw_from_density(edges: Tensor, weights: Tensor, count: int, *, drawn: bool) -> Tensor:
    """Return ``count`` places on each ray that follow a density which is constant between two edges.

    The inverse of the cumulated density is taken at uniform numbers, and is linear between two edges. No gradient goes
    through it.

    Args:
        edges: In ascending order, ``(n, parts + 1)``.
        weights: The mass of each part, up to a factor a ray, ``(n, parts)``; none is negative.
        count: The number of places.
        drawn: Take the inverse at numbers drawn from the global random state. False takes it at ``count`` numbers of
            equal distance.

    Returns:
        t, ``(n, count)``; in ascending order only where they are not drawn.
    """
    weights = weights.detach() + _LEAST
    share = weights / weights.sum(1, keepdim=True)
    cumulated = torch.cat([torch.zeros_like(share[:, :1]), share.cumsum(1)], dim=1)
    if drawn:
        u = torch.rand(len(edges), count, dtype=edges.dtype, device=edges.device)
    else:
        u = (torch.arange(count, dtype=edges.dtype, device=edges.device) + 0.5) / count
        u = u.expand(len(edges), count).contiguous()
    last = share.shape[1] - 1
    # Rounding may leave the last cumulated number below 1.
    part = (torch.searchsorted(cumulated, u, right=True) - 1).clamp(0, last)
    begin, end = edges.gather(1, part), edges.gather(1, part + 1)
    fraction = ((u - cumulated.gather(1, part)) / share.gather(1, part)).clamp(0, 1)
    return begin + fraction * (end - begin)


def refine(t: Tensor, weights: Tensor, count: int, *, drawn: bool) -> Tensor:
    """Return ``t`` and ``count`` further places where the coarse pass found something, in ascending order.

    The weight of each inner place of the coarse pass is spread between the middles of its distances to its neighbours.
    The first and the last place have no neighbour on one side and are left out, as in the paper's code.

    Args:
        t: The places of the coarse pass, ``(n, coarse)``, ascending, three at least.
        weights: Their weights in the colour, ``(n, coarse)``.
        count: The number of further places.
        drawn: See :func:`draw_from_density`.

    Returns:
        t, ``(n, coarse + count)``.
    """
    middles = (t[:, 1:] + t[:, :-1]) / 2
    further = draw_from_density(middles, weights[:, 1:-1], count, drawn=drawn)
    return torch.cat([t, further], dim=1).sort(dim=1).values
