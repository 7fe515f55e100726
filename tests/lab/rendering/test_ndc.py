"""Normalized device coordinates, against their definition and their inverse."""

import pytest
import torch

from bpfree.lab.rendering import Rays
from bpfree.lab.rendering.ndc import from_ndc, to_ndc

SCALE = (2 * 407.57 / 504, 2 * 407.57 / 378)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def projected(points, near):
    """The definition: the perspective matrix of OpenGL with its far plane at infinity, and the division by w."""
    width, height = 2 / SCALE[0], 2 / SCALE[1]  # of the near plane at a distance of 1
    matrix = torch.tensor(
        [[2 / width, 0, 0, 0], [0, 2 / height, 0, 0], [0, 0, -1, -2 * near], [0, 0, -1, 0]], dtype=torch.float64
    )
    clip = torch.cat([points, torch.ones(len(points), 1)], dim=1) @ matrix.T
    return clip[:, :3] / clip[:, 3:]


def forward_rays(n=200):
    directions = torch.randn(n, 3)
    directions[:, 2] = -directions[:, 2].abs() - 0.1
    origins = 0.3 * torch.randn(n, 3)
    ones = torch.ones(n, 1)
    return Rays(origins, directions, directions / directions.norm(dim=1, keepdim=True), ones, 9 * ones)


@pytest.mark.parametrize("near", [1.0, 0.4])
def test_points_on_mapped_rays_are_the_mapped_points(near):
    rays = forward_rays()
    mapped = to_ndc(rays, SCALE, near)
    start = -(near + rays.origins[:, 2:]) / rays.directions[:, 2:]  # where the ray meets the near plane
    for t in (0.0, 0.5, 3.0, 100.0):
        points = rays.origins + (start + t) * rays.directions
        z0, dz = -near, rays.directions[:, 2:]
        share = 1 - z0 / (z0 + t * dz)  # equation 20 of appendix C: t' = 1 - o_z / (o_z + t d_z)
        torch.testing.assert_close(mapped.origins + share * mapped.directions, projected(points, near))


def test_rays_begin_at_the_near_plane_and_end_at_infinity():
    rays = forward_rays()
    mapped = to_ndc(rays, SCALE)
    torch.testing.assert_close(mapped.origins[:, 2], -torch.ones(200))
    torch.testing.assert_close((mapped.origins + mapped.directions)[:, 2], torch.ones(200))
    assert torch.equal(mapped.near, torch.zeros(200, 1))
    assert torch.equal(mapped.far, torch.ones(200, 1))
    assert torch.equal(mapped.views, rays.views)


@pytest.mark.parametrize("near", [1.0, 2.5])
def test_the_inverse_gives_the_points_back(near):
    points = torch.randn(300, 3)
    points[:, 2] = -near - 5 * torch.rand(300)
    torch.testing.assert_close(from_ndc(projected(points, near), SCALE, near), points)


def test_the_cube_is_what_the_camera_sees():
    """Rays through the corners of a picture, from the origin, stay at the edges of the cube."""
    corners = torch.tensor([[x / SCALE[0], y / SCALE[1], -1.0] for x in (-1, 1) for y in (-1, 1)])
    ones = torch.ones(4, 1)
    mapped = to_ndc(Rays(torch.zeros(4, 3), corners, corners, ones, ones), SCALE)
    torch.testing.assert_close(mapped.origins[:, :2], torch.tensor([[x, y] for x in (-1.0, 1.0) for y in (-1.0, 1.0)]))
    torch.testing.assert_close(mapped.directions[:, :2], torch.zeros(4, 2))
