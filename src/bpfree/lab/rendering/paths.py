"""Ways of a camera around a scene, or before it, for moving pictures."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from bpfree.lab.data.scenes.cameras import Cameras


def turntable(cameras: Cameras, count: int) -> Cameras:
    """Return cameras on a circle around the point that the given ones look at, which look at it too.

    The circle has the mean distance and the mean height of the given cameras, and their mean upward axis as its own.

    Args:
        cameras: Cameras around a scene.
        count: The number of places on the circle, at even distances.
    """
    poses = cameras.poses
    middle, up = looked_at(poses), _unit(poses[:, :, 1].mean(0))
    away = poses[:, :, 3] - middle
    height = (away @ up).mean()
    radius = (away - (away @ up)[:, None] * up).norm(dim=1).mean()
    first = _unit(away[0] - (away[0] @ up) * up)
    second = torch.linalg.cross(up, first)
    angles = 2 * math.pi * torch.arange(count, dtype=poses.dtype)[:, None] / count
    places = middle + height * up + radius * (angles.cos() * first + angles.sin() * second)
    return _moved(cameras, torch.stack([_look_at(place, middle, up) for place in places]))


def sway(cameras: Cameras, count: int) -> Cameras:
    """Return cameras on an ellipse before a scene, which all look as the mean of the given ones does.

    The ellipse lies in the plane of the mean camera and is as wide and as high as nine in ten of the given ones lie.

    Args:
        cameras: Cameras before a scene, which look forward.
        count: The number of places on the ellipse.
    """
    poses = cameras.poses
    middle, back = poses[:, :, 3].mean(0), _unit(poses[:, :, 2].mean(0))
    right = _unit(torch.linalg.cross(poses[:, :, 1].mean(0), back))
    up = torch.linalg.cross(back, right)
    away = poses[:, :, 3] - middle
    wide, high = ((away @ axis).abs().quantile(0.9) for axis in (right, up))
    angles = 2 * math.pi * torch.arange(count, dtype=poses.dtype)[:, None] / count
    places = middle + wide * angles.cos() * right + high * angles.sin() * up
    return _moved(cameras, torch.stack([torch.stack([right, up, back, place], dim=1) for place in places]))


def looked_at(poses: Tensor) -> Tensor:
    """Return the point nearest to the lines along which all cameras look, by least squares, ``(3,)``.

    Args:
        poses: The cameras' poses, ``(n, 3, 4)``.
    """
    along = poses[:, :, 2]
    across = torch.eye(3, dtype=poses.dtype) - along[:, :, None] * along[:, None, :]
    # Cameras that look in parallel meet nowhere: of many nearest points, the one nearest to the origin.
    return torch.linalg.lstsq(across.sum(0), (across @ poses[:, :, 3:]).sum(0), driver="gelsd").solution[:, 0]


def _look_at(place: Tensor, target: Tensor, up: Tensor) -> Tensor:
    back = _unit(place - target)
    right = _unit(torch.linalg.cross(up, back))
    return torch.stack([right, torch.linalg.cross(back, right), back, place], dim=1)


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


def _moved(cameras: Cameras, poses: Tensor) -> Cameras:
    """Return cameras with the first one's lens at these poses."""
    n = len(poses)
    return replace(cameras, poses=poses, focal=cameras.focal[:1].expand(n, 2), centre=cameras.centre[:1].expand(n, 2))
