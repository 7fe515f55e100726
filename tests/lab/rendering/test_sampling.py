"""Places on rays: one in each part, and as many as a density says."""

import math

import pytest
import torch

from bpfree.lab.rendering import draw_from_density, spread_evenly
from bpfree.lab.rendering.sampling import refine


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_each_part_of_a_ray_has_one_place_uniform_in_it():
    near, far = column(*[2.0] * 4000), column(*[6.0] * 4000)
    t = spread_evenly(near, far, 8, drawn=True)
    within = (t - 2.0) / 0.5 - torch.arange(8)
    assert within.min() >= 0
    assert within.max() < 1
    # Kolmogorov-Smirnov: this distance is exceeded with a probability of 1e-6.
    for part in within.T:
        ordered, n = part.sort().values, len(part)
        distance = (ordered - (torch.arange(n) + 0.5) / n).abs().max() + 0.5 / n
        assert distance < math.sqrt(-math.log(0.5e-6) / (2 * n))
    assert abs(torch.corrcoef(within[:, :2].T)[0, 1]) < 5 / math.sqrt(4000)


def test_undrawn_places_are_the_middles():
    t = spread_evenly(column(0.0, 2.0), column(1.0, 6.0), 4, drawn=False)
    assert torch.equal(t, torch.tensor([[0.125, 0.375, 0.625, 0.875], [2.5, 3.5, 4.5, 5.5]], dtype=torch.float64))


EDGES = torch.tensor([[0.0, 1.0, 1.5, 4.0, 4.25]], dtype=torch.float64)
WEIGHTS = torch.tensor([[3.0, 0.0, 5.0, 2.0]], dtype=torch.float64)


def cumulated(t):
    """The share of the density below ``t``: 0.3 on [0, 1], nothing up to 1.5, 0.5 on [1.5, 4], and the rest."""
    whole = [(0.0, 1.0, 0.3), (1.5, 4.0, 0.5), (4.0, 4.25, 0.2)]
    return sum(share * ((t - begin) / (end - begin)).clamp(0, 1) for begin, end, share in whole)


def test_drawn_places_follow_a_known_density():
    n = 40_000
    t = draw_from_density(EDGES, WEIGHTS, n, drawn=True)[0].sort().values
    distance = (cumulated(t) - (torch.arange(n) + 0.5) / n).abs().max() + 0.5 / n
    # As above; the least weight that every part has moves 2e-6 of the places.
    assert distance < math.sqrt(-math.log(0.5e-6) / (2 * n)) + 1e-5


def test_undrawn_places_are_the_quantiles():
    t = draw_from_density(EDGES, WEIGHTS, 1000, drawn=False)[0]
    torch.testing.assert_close(cumulated(t), (torch.arange(1000) + 0.5).double() / 1000, atol=1e-5, rtol=0)
    assert (t.diff() >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "weights", [[0.0] * 4, [1e-30] * 4, [0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0], [1e30, 1, 1, 1]]
)
def test_places_lie_between_the_edges_whatever_the_weights(dtype, weights):
    given = torch.tensor([weights], dtype=dtype)
    t = draw_from_density(EDGES.to(dtype), given, 5000, drawn=True)
    assert t.isfinite().all()
    assert t.min() >= 0
    assert t.max() <= 4.25
    if sum(weights) < 1e-20:  # nothing is seen: even
        share = (t < 1.0).double().mean()
        assert abs(share - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 5000)


def test_rays_have_densities_of_their_own():
    edges = torch.cat([EDGES, EDGES + 10])
    weights = torch.stack([WEIGHTS[0], WEIGHTS[0].flip(0)])
    together = draw_from_density(edges, weights, 50, drawn=False)
    for row in range(2):
        alone = draw_from_density(edges[row : row + 1], weights[row : row + 1], 50, drawn=False)
        assert torch.equal(together[row : row + 1], alone)


def test_the_fine_pass_looks_where_weights_are_and_keeps_the_coarse_places():
    t = torch.arange(10, dtype=torch.float64)[None]
    weights = torch.zeros(1, 10, dtype=torch.float64)
    weights[0, 4] = 1.0
    found = refine(t, weights, 100, drawn=True)
    assert found.shape == (1, 110)
    assert (found.diff() >= 0).all()
    assert set(t[0].tolist()) <= set(found[0].tolist())
    # All of the weight of place 4 lies between 3.5 and 4.5; the coarse place itself is one of them.
    assert ((found > 3.5) & (found < 4.5)).sum() >= 100


def test_no_gradient_goes_through_places():
    weights = WEIGHTS.clone().requires_grad_()
    assert not draw_from_density(EDGES, weights, 5, drawn=True).requires_grad
