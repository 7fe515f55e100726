"""Whole views at any resolution, and the ways of moving cameras."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bpfree.lab.data.scenes import Cameras
from bpfree.lab.data.scenes.cameras import require_pose
from bpfree.lab.errors import SettingsError
from bpfree.lab.models import NeRF
from bpfree.lab.rendering.paths import sway, turntable
from bpfree.lab.rendering.view import render_view
from support import tiny_scene
from support.tiny_scene import FOCAL, HEIGHT, WIDTH


def cameras(poses, **changes):
    poses = torch.from_numpy(np.stack(poses)[:, :3])
    focal = torch.full((len(poses), 2), FOCAL, dtype=torch.float64)
    centre = torch.tensor([[WIDTH / 2, HEIGHT / 2]], dtype=torch.float64).expand(len(poses), 2)
    return replace(Cameras(poses, focal, centre, WIDTH, HEIGHT, 2.0, 6.0), **changes)


def around(count=9):
    return cameras([tiny_scene.look_at(position, (0, 0, 0)) for position in tiny_scene.POSITIONS[:count]])


@pytest.mark.parametrize("dual", [False, True])
def test_a_view_is_its_rays_row_by_row(dual):
    torch.manual_seed(0)
    model, given = NeRF(depth=2, width=8, skips=[], samples=4, fine_samples=4), around(3)
    view = render_view(model, given, 1, dual=dual)
    rays = given.rays(torch.arange(WIDTH * HEIGHT, 2 * WIDTH * HEIGHT))
    for name, whole in model.render(rays, dual=dual).items():
        assert torch.equal(view[name], whole.unflatten(0, (HEIGHT, WIDTH)))
        assert view[name].shape[:2] == (HEIGHT, WIDTH)


def test_no_more_is_asked_at_once_of_a_larger_view():
    asked = []

    class Model:
        def render(self, rays, *, dual=False):
            asked.append(len(rays.origins))
            return {"colours": rays.views, "depth": rays.near[:, 0]}

    small = render_view(Model(), around(1).resized(150), 0)
    large = render_view(Model(), around(1).resized(300), 0)
    assert (small["colours"].shape, large["colours"].shape) == ((100, 150, 3), (200, 300, 3))
    assert max(asked) == 2**12
    assert sum(asked) == 150 * 100 + 300 * 200


def test_a_resized_camera_sees_the_same():
    """The rays through the middles of 2 x 2 pixels have the mean direction of the one pixel that they were."""
    given = around(2)
    large = given.resized(2 * WIDTH)
    assert (large.width, large.height) == (2 * WIDTH, 2 * HEIGHT)
    of_pixels = given.rays(torch.arange(given.pixels)).directions.unflatten(0, (HEIGHT, WIDTH))
    finer = large.rays(torch.arange(large.pixels)).directions.unflatten(0, (HEIGHT, 2, WIDTH, 2))
    torch.testing.assert_close(finer.mean((1, 3)), of_pixels)
    with pytest.raises(SettingsError, match="at least 1"):
        given.resized(0)


def test_a_turntable_goes_around_what_the_cameras_see():
    target, up = np.array([0.5, -1.0, 2.0]), np.array([0.0, 0.6, 0.8])
    first, second = np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.8, -0.6])
    places = [target + 3 * (math.cos(a) * first + math.sin(a) * second) + 1.5 * up for a in np.arange(8) * math.pi / 4]
    found = turntable(cameras([tiny_scene.look_at(place, target, up) for place in places]), 16)
    positions = found.poses[:, :, 3].numpy()
    for k, place in enumerate(places):  # every second one is one of those given, in one direction or the other
        assert min(np.abs(positions[2 * k] - place).max(), np.abs(positions[-2 * k] - place).max()) < 1e-9
    for pose in found.poses.numpy():
        require_pose(pose, "a pose")
        np.testing.assert_allclose(np.cross(pose[:, 2], pose[:, 3] - target), 0, atol=1e-9)  # it looks at the target
        assert pose[:, 2] @ (pose[:, 3] - target) > 0
        assert pose[:, 1] @ up > 0
    assert len(found.rays(torch.arange(16 * found.pixels)).origins) == 16 * WIDTH * HEIGHT


def test_cameras_that_sway_look_as_the_mean_does():
    poses = []
    for x, y in ((-2, 0), (-1, 1), (0, 0), (1, -1), (2, 0)):
        pose = np.eye(4)
        pose[:3, 3] = x, y, 0.5
        poses.append(pose)
    found = sway(cameras(poses), 12).poses.numpy()
    np.testing.assert_allclose(found[:, :, :3], np.broadcast_to(np.eye(3), (12, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(found[:, 2, 3], 0.5)
    wide, high = np.quantile([2, 1, 0, 1, 2], 0.9), np.quantile([0, 1, 0, 1, 0], 0.9)
    np.testing.assert_allclose((found[:, 0, 3] / wide) ** 2 + (found[:, 1, 3] / high) ** 2, 1)
