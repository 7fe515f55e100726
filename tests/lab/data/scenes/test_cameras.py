"""Rays of pixels, against the projection of points by textbook camera matrices."""

import numpy as np
import pytest
import torch

from bpfree.lab.data.scenes import SceneSettings, load_blender, load_llff, load_nerfstudio
from bpfree.lab.data.scenes.llff import centred
from bpfree.lab.rendering import Passes, render
from support import tiny_scene
from support.tiny_scene import FOCAL, HEIGHT, WIDTH

LOADERS = {"blender": load_blender, "nerfstudio": load_nerfstudio, "llff": load_llff}
BOUNDS = SceneSettings(near=0.5, far=9.0, ndc=False)


def scene(kind, folder, settings=BOUNDS):
    getattr(tiny_scene, kind)(folder)
    return LOADERS[kind](folder, settings)


def projected(pose, points):
    """Pixels from the top left corner, by K (R | t) of a camera that looks along +z with y down (OpenCV)."""
    world_to_camera = np.linalg.inv(np.vstack([pose[:3], [0, 0, 0, 1]]))
    flip = np.diag([1.0, -1.0, -1.0])
    own = (flip @ (world_to_camera[:3, :3] @ points.T + world_to_camera[:3, 3:])).T
    K = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
    image = own @ K.T
    return image[:, :2] / image[:, 2:], own[:, 2]


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("number", [0, 1])
def test_each_ray_is_seen_in_its_own_pixel(kind, number, tmp_path):
    views = scene(kind, tmp_path).train
    rays, _ = views.of_view(number)
    pose = views.cameras.poses[number].numpy()
    middles = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), axis=-1).reshape(-1, 2) + 0.5
    for t in (0.5, 4.0):
        points = (rays.origins + t * rays.directions).double().numpy()
        pixels, depth = projected(pose, points)
        np.testing.assert_allclose(pixels, middles, atol=1e-3)
        np.testing.assert_allclose(depth, t, atol=1e-5)  # t is depth along the camera's axis
    torch.testing.assert_close(rays.views.norm(dim=1), torch.ones(WIDTH * HEIGHT))
    torch.testing.assert_close(rays.views * rays.directions.norm(dim=1, keepdim=True), rays.directions)


def test_rays_of_a_camera_of_blender_in_closed_form(tmp_path):
    """From (4, 0, 1) towards the origin, z up: right is +y, and the middle of the picture looks at the origin."""
    views = scene("blender", tmp_path).train
    rays, _ = views.of_view(0)
    distance = np.sqrt(17)
    torch.testing.assert_close(rays.origins[0], torch.tensor([4.0, 0.0, 1.0]))
    forward, right, up = np.array([-4, 0, -1]) / distance, np.array([0, 1, 0]), np.array([-1, 0, 4]) / distance
    for row, column in ((0, 0), (HEIGHT - 1, 0), (7, 13)):
        expected = (
            forward + (column + 0.5 - WIDTH / 2) / FOCAL * right - (row + 0.5 - HEIGHT / 2) / FOCAL * up
        ).astype(np.float32)
        np.testing.assert_allclose(rays.directions[row * WIDTH + column].numpy(), expected, atol=1e-6)
    corners = rays.directions.unflatten(0, (HEIGHT, WIDTH))[:: HEIGHT - 1, :: WIDTH - 1].double()
    np.testing.assert_allclose(corners.mean((0, 1)).numpy(), forward, atol=1e-6)


def test_rays_of_a_camera_of_llff_in_closed_form(tmp_path):
    """Cameras side by side, none turned: down, right, back of the file are -y, x and z of the scene."""
    poses = np.stack([np.hstack([np.eye(3), [[x], [y], [2.0]]]) for y in (0.0, 1.0) for x in (-1.0, 0.0, 1.0)])
    tiny_scene.llff(tmp_path)
    for extra in sorted((tmp_path / "images_2").iterdir())[6:]:
        extra.unlink()
    np.save(tmp_path / "poses_bounds.npy", np.stack([tiny_scene.row(pose) for pose in poses]))
    views = load_llff(tmp_path, BOUNDS).train
    unit = 1 / (0.75 * 4.0)  # of the nearest bound
    for number, position in enumerate(poses[1:, :, 3] - poses[:, :, 3].mean(0)):
        rays, _ = views.of_view(number)
        np.testing.assert_allclose(rays.origins[0].numpy(), unit * position, atol=1e-6)
        for row, column in ((0, 0), (5, 20)):
            expected = [(column + 0.5 - WIDTH / 2) / FOCAL, -(row + 0.5 - HEIGHT / 2) / FOCAL, -1.0]
            np.testing.assert_allclose(rays.directions[row * WIDTH + column].numpy(), expected, atol=1e-6)


def test_the_mean_camera_is_the_origin_and_distances_stay():
    poses = np.stack([tiny_scene.look_at(p, (0.3, 0.2, -5), (0.1, 1, 0)) for p in tiny_scene.FORWARD])[:, :3]
    found = centred(poses)
    np.testing.assert_allclose(found[:, :, 3].mean(0), 0, atol=1e-12)
    back = found[:, :, 2].mean(0)
    np.testing.assert_allclose(back / np.linalg.norm(back), [0, 0, 1], atol=1e-12)
    up = found[:, :, 1].mean(0)
    assert abs(up[0]) < 1e-12
    assert up[1] > 0

    def between(some):  # positions and directions, as each camera sees the first one
        return [some[0][:, :3].T @ (one[:, 3] - some[0][:, 3]) for one in some], [
            some[0][:, :3].T @ one[:, :3] for one in some
        ]

    for one, other in zip(between(poses), between(found), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def small_cloud(centre, size):
    """A thin red cloud around a point, so smooth that its middle is found more finely than pixels lie."""

    def ask(points, views):
        raw = torch.tensor([5.0, -5.0, -5.0, 0.0]).repeat(len(points), 1)
        raw[:, 3] = 0.2 / size * torch.exp(-(points - centre).square().sum(1) / (2 * size**2))
        return raw

    return ask


@pytest.mark.parametrize("kind", LOADERS)
def test_a_coloured_point_appears_where_projective_geometry_puts_it(kind, tmp_path):
    views = scene(kind, tmp_path).train
    original = {
        "blender": [tiny_scene.look_at(p, (0, 0, 0)) for p in tiny_scene.POSITIONS[:5]],
        "nerfstudio": [tiny_scene.look_at(p, (0, 0, 0)) for p in tiny_scene.POSITIONS[1:8]],
        "llff": [tiny_scene.look_at(p, (0, 0, -5), (0, 1, 0)) for k, p in enumerate(tiny_scene.FORWARD) if k % 8],
    }[kind]
    assert len(original) == views.count
    # The point in the first camera's own coordinates, and from these in those of the scene.
    point = np.array([0.35, -0.3, 0.2]) if kind != "llff" else np.array([0.35, -0.3, -5.2])
    unit = 1 / 3.0 if kind == "llff" else 1.0
    own = unit * original[0][:3, :3].T @ (point - original[0][:3, 3])
    pose = views.cameras.poses[0].numpy()
    here = torch.from_numpy(pose[:, :3] @ own + pose[:, 3]).float()
    for number in (0, 3):
        rays, _ = views.of_view(number)
        shown = render(rays, small_cloud(here, 0.2 * unit), None, Passes(samples=300), training=False)[-1]
        red = shown.colours[:, 0].double().numpy()
        assert red.max() > 0.2
        middles = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), axis=-1).reshape(-1, 2) + 0.5
        seen = (red[:, None] * middles).sum(0) / red.sum()
        ((expected,), (depth,)) = projected(original[number], point[None])
        np.testing.assert_allclose(seen, expected, atol=0.05)  # of a pixel
        brightest = red.argmax()
        found = (shown.depth[brightest] / shown.opacity[brightest]).item()
        assert found == pytest.approx(depth * unit, rel=0.01)


def test_the_point_stands_at_the_same_pixel_in_normalized_device_coordinates(tmp_path):
    plain = scene("llff", tmp_path).train
    mapped = load_llff(tmp_path, SceneSettings()).train
    for number in (0, 7):
        rays, _ = plain.of_view(number)
        other, _ = mapped.of_view(number)
        points = (rays.origins + 5.0 / 3 * rays.directions).double()
        sx, sy = 2 * FOCAL / WIDTH, 2 * FOCAL / HEIGHT
        x, y, z = points.unbind(1)
        cube = torch.stack([-sx * x / z, -sy * y / z, 1 + 2 / z], dim=1)  # by the definition, whatever the ray
        t = (cube[:, 2:] + 1) / 2
        torch.testing.assert_close(other.points(t.float())[:, 0], cube.float(), atol=1e-5, rtol=1e-5)
        assert (other.near == 0).all()
        assert (other.far == 1).all()
