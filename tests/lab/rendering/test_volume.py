"""Volume rendering, against integrals that are known: a slab, a ball, and empty space."""

import math

import pytest
import torch

from bpfree.lab.errors import SettingsError
from bpfree.lab.rendering import Passes, Rays, composite, render
from bpfree.lab.rendering.passes import in_chunks

RAW = (0.3, -1.2, 2.0)
COLOUR = torch.tensor(RAW, dtype=torch.float64).sigmoid()
SIGMA = 1.7


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def rays(origins, directions, near=0.0, far=8.0):
    origins, directions = torch.tensor(origins), torch.tensor(directions)
    ones = torch.ones(len(origins), 1)
    views = directions / directions.norm(dim=1, keepdim=True)
    return Rays(origins, directions, views, near * ones, far * ones)


def field(inside):
    """Constant density and colour where ``inside`` holds for points ``(n, 3)``; nothing elsewhere."""

    def ask(points, views):
        raw = torch.tensor([*RAW, SIGMA]).repeat(len(points), 1)
        raw[:, 3] = torch.where(inside(points), SIGMA, -1.0)
        return raw

    return ask


slab = field(lambda p: (p[:, 2] > 2.0) & (p[:, 2] < 3.5))
ball = field(lambda p: p.norm(dim=1) < 1.0)


def expected(length, background):
    opacity = 1 - math.exp(-SIGMA * length)
    return opacity * COLOUR + (1 - opacity) * background, opacity


@pytest.mark.parametrize("background", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("direction", [(0.0, 0.0, 1.0), (0.6, 0.0, 0.8), (0.0, 0.0, 2.5), (0.5, -0.5, 1.0)])
def test_a_slab(direction, background):
    found = render(
        rays([(0.0, 0.0, 0.0)], [direction]),
        slab,
        None,
        Passes(samples=20_000, background=background),
        training=False,
    )[-1]
    # The way through the slab is its thickness over the cosine; t is in units of the direction's length.
    cosine = direction[2] / math.hypot(*direction)
    colours, opacity = expected(1.5 / cosine, background)
    torch.testing.assert_close(found.colours[0], colours, atol=1e-3, rtol=0)
    assert found.opacity[0] == pytest.approx(opacity, abs=1e-3)
    # The mean of t with the density of where light comes from: integral of t sigma exp(-sigma (t - a)) over [a, b].
    size = math.hypot(*direction)
    a, b = 2.0 / cosine, 3.5 / cosine
    depth = (a + 1 / SIGMA) - (b + 1 / SIGMA) * math.exp(-SIGMA * (b - a))
    assert found.depth[0] == pytest.approx(depth / size, abs=2e-3)


@pytest.mark.parametrize("offset", [0.0, 0.4, 0.9, 1.1])
def test_a_ball(offset):
    found = render(
        rays([(offset, 0.0, -4.0)], [(0.0, 0.0, 1.0)]),
        ball,
        None,
        Passes(samples=20_000, background=1.0),
        training=False,
    )[-1]
    chord = 2 * math.sqrt(max(0.0, 1 - offset**2))
    colours, opacity = expected(chord, 1.0)
    torch.testing.assert_close(found.colours[0], colours, atol=1e-3, rtol=0)
    assert found.opacity[0] == pytest.approx(opacity, abs=1e-3)


@pytest.mark.parametrize("training", [False, True])
def test_a_fine_pass_finds_a_thin_slab_that_few_coarse_points_meet(training):
    thin = field(lambda p: (p[:, 2] > 2.05) & (p[:, 2] < 2.45))
    passes = Passes(samples=32, fine_samples=2000)  # a coarse point each 0.25
    given = rays([(0.0, 0.0, 0.0)] * 20, [(0.0, 0.0, 1.0)] * 20)
    coarse, fine = render(given, thin, thin, passes, training=training)
    colours, _ = expected(0.4, 0.0)
    # Of drawn coarse places, some leave an edge of the slab to no fine place: so it is the median ray.
    assert (fine.colours - colours).abs().median() < 1e-3
    assert (coarse.colours - colours).abs().median() > 5e-3


def test_weights_are_no_probability_of_more_than_one():
    for scale in (1e-3, 1.0, 1e3, 1e6):
        raw = scale * torch.randn(200, 50, 4)
        t = torch.rand(200, 50).sort(dim=1).values
        found = composite(raw, t, torch.randn(200, 3))
        assert found.weights.min() >= 0
        assert found.opacity.max() <= 1 + 1e-12
        assert (found.colours >= 0).all()
        assert (found.colours <= 1 + 1e-12).all()
        single = composite(raw.float(), t.float(), torch.randn(200, 3, dtype=torch.float32))
        assert single.opacity.max() <= 1 + 1e-5


def test_the_sum_by_hand():
    """Four points, each factor written out."""
    t, raw = torch.tensor([[1.0, 1.5, 3.0, 4.0]]), torch.randn(1, 4, 4)
    raw[0, :, 3] = torch.tensor([0.5, -2.0, 0.8, 0.1])
    found = composite(raw, t, torch.tensor([[0.0, 3.0, 4.0]]), background=0.25)
    alphas = [1 - math.exp(-0.5 * 0.5 * 5), 0.0, 1 - math.exp(-0.8 * 1.0 * 5), 1.0]
    left, colour = 1.0, torch.zeros(3)
    for alpha, value in zip(alphas, raw[0, :, :3].sigmoid(), strict=True):
        colour = colour + left * alpha * value
        left *= 1 - alpha
    torch.testing.assert_close(found.colours[0], colour + left * 0.25)


def test_gradients_are_those_of_finite_differences():
    raw, t = torch.randn(3, 6, 4, requires_grad=True), torch.rand(3, 6).sort(dim=1).values
    raw.data[..., 3] = raw.data[..., 3].abs() + 0.1
    raw.data[:, -1, 3] = -1.0  # behind the last point density is all or nothing
    directions = torch.randn(3, 3)
    assert torch.autograd.gradcheck(lambda raw: composite(raw, t, directions, background=1.0).colours, (raw,))


def test_gradients_are_finite_where_a_point_is_opaque():
    raw = torch.full((1, 5, 4), 50.0, requires_grad=True)
    raw.data[0, 2, 3] = 1e9
    composite(raw, torch.arange(5.0)[None], torch.tensor([[0.0, 0.0, 1.0]])).colours.sum().backward()
    assert raw.grad.isfinite().all()


def test_noise_is_on_densities_and_in_training_alone():
    given, passes = rays([(0.0, 0.0, 0.0)] * 2, [(0.0, 0.0, 1.0)] * 2), Passes(samples=40, noise=1.0)
    one, other = (render(given, slab, None, passes, training=False)[0].colours for _ in range(2))
    assert torch.equal(one, other)
    raw, t = torch.zeros(1, 100_000, 4), torch.linspace(0, 1, 100_000)[None]
    raw[..., 3] = 2.0
    # The mean density of ReLU(2 + noise) over many points: 2 Phi(2) + phi(2).
    weights = composite(raw, t, torch.tensor([[0.0, 0.0, 1.0]]), noise=1.0).weights[:, :-1]
    phi, cumulated = math.exp(-2) / math.sqrt(2 * math.pi), 0.5 * (1 + math.erf(math.sqrt(2)))
    assert weights.sum() == pytest.approx(1 - math.exp(-(2 * cumulated + phi)), abs=2e-3)


def test_dual_is_the_mean_of_both_fields_at_the_fine_places():
    dense = field(lambda p: p[:, 2] > 3.0)

    def mean(points, views):
        return (slab(points, views) + dense(points, views)) / 2

    given, passes = rays([(0.0, 0.0, 0.0)], [(0.1, 0.0, 1.0)]), Passes(samples=50, fine_samples=30, background=1.0)
    dual = render(given, slab, dense, passes, training=False, dual=True)[-1]
    again = render(given, slab, mean, passes, training=False)[-1]
    torch.testing.assert_close(dual.colours, again.colours)
    with pytest.raises(SettingsError, match="dual"):
        render(given, slab, None, passes, training=False, dual=True)


def test_chunks_hold_all_rays_once_and_no_more_points_than_asked():
    given, passes = rays([(float(i), 0.0, 0.0) for i in range(103)], [(0.0, 0.0, 1.0)] * 103), Passes()
    parts = list(in_chunks(given, passes, chunk=1000))
    assert max(len(part.origins) for part in parts) == 1000 // 192
    assert torch.equal(torch.cat([part.pack() for part in parts]), given.pack())
    assert [len(part.origins) for part in in_chunks(given, passes, chunk=1)] == [1] * 103


def test_packed_rays_are_the_same_rays():
    given = Rays(*torch.randn(5, 11).split([3, 3, 3, 1, 1], dim=1))
    assert all(torch.equal(one, other) for one, other in zip(given, Rays.unpack(given.pack()), strict=True))


@pytest.mark.parametrize(
    "wrong", [{"samples": 2}, {"fine_samples": -1}, {"noise": -1.0}, {"noise": math.nan}, {"background": 2.0}]
)
def test_passes_that_mean_nothing(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Passes(**wrong)
