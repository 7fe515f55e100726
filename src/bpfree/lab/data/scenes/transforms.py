"""The JSON files that list the views of Blender's scenes and of Nerfstudio."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bpfree.lab.data.scenes.cameras import Cameras, require_pose
from bpfree.lab.data.scenes.photographs import find_picture, read_pictures
from bpfree.lab.data.scenes.scene import Views
from bpfree.lab.data.scenes.settings import Channels
from bpfree.lab.disk.bounded import contents, parse_json
from bpfree.lab.errors import DataError

_LENS = ("k1", "k2", "k3", "k4", "p1", "p2")
_LARGEST = 1e9
_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")


@dataclass(frozen=True)
class Frame:
    """One view of a list.

    Attributes:
        name: Its name there.
        picture: Its file.
        pose: float64 ``(3, 4)``.
        lens: The numbers of its lens: its own, or those of the whole file.
    """

    name: str
    picture: Path
    pose: np.ndarray
    lens: Mapping[str, Any]


@dataclass(frozen=True)
class Listed:
    """A list of views.

    Attributes:
        path: Its file.
        frames: The views, in the order of the file.
        content: Everything that the file says.
        checksum: The SHA-256 of the file.
    """

    path: Path
    frames: tuple[Frame, ...]
    content: Mapping[str, Any]
    checksum: str


def read_list(path: Path) -> Listed:
    """Read a list of views.

    Raises:
        DataError: The file is missing or none of its kind, a view is missing, or a pose is no rotation.
    """
    raw = contents(path)
    try:
        content = parse_json(raw)
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}). Export the scene again.") from error
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise DataError(f"{path} has no list frames of the scene's views. Export the scene again.")
    found = tuple(_frame(path, content, number, frame) for number, frame in enumerate(frames))
    _require_different(path, found)
    return Listed(path, found, content, hashlib.sha256(raw).hexdigest())


def _frame(path: Path, content: Mapping[str, Any], number: int, frame: Mapping[str, Any]) -> Frame:
    name = frame.get("file_path")
    if not isinstance(name, str):
        raise DataError(f"{path}: frames[{number}] has no file_path, the name of its picture.")
    where = f"{path}: frames[{number}], {name}"
    try:
        pose = np.array(frame["transform_matrix"], dtype=np.float64)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{where}: it has no transform_matrix of 4 x 4 numbers.") from error
    require_pose(pose, where)
    return Frame(name, find_picture(path.parent, name, path), pose[:3], {**content, **frame})


def _require_different(path: Path, frames: Iterable[Frame]) -> None:
    """Raise DataError if two views have one picture: a short list could take any amount of memory otherwise."""
    known: set[Path] = set()
    for frame in frames:
        picture = frame.picture.resolve()
        if picture in known:
            raise DataError(f"{path} lists {frame.name} twice. Leave one of the two out.")
        known.add(picture)


def make_views(
    listed: Listed,
    frames: tuple[Frame, ...],
    channels: Channels,
    bounds: tuple[float, float],
    background: float,
) -> Views:
    """Read the pictures of some views of a list.

    Args:
        listed: The list.
        frames: Those of its views that are wanted, one at least.
        channels: What pictures must have.
        bounds: Where rays begin and end.
        background: The grey behind transparent pixels.

    Raises:
        DataError: A picture does not fit the others or the list, or a lens is not one of a plain camera.
    """
    pixels = read_pictures([frame.picture for frame in frames], channels)
    height, width = pixels.shape[1:3]
    lenses = [_lens(listed.path, frame, width, height) for frame in frames]
    focal, centre = (torch.tensor([lens[part] for lens in lenses], dtype=torch.float64) for part in (0, 1))
    poses = torch.from_numpy(np.stack([frame.pose for frame in frames]))
    cameras = Cameras(poses, focal, centre, width, height, *bounds)
    return Views(pixels, cameras, background, tuple(frame.name for frame in frames))


Pair = tuple[float, float]


def _lens(path: Path, frame: Frame, width: int, height: int) -> tuple[Pair, Pair]:
    """Return the focal lengths and the middle of a view, in pixels.

    Raises:
        DataError: The list says another size, no focal length, or a lens that bends lines.
    """
    where = f"{path}: {frame.name}"
    for key, size in (("w", width), ("h", height)):
        said = _number(frame.lens, key, where)
        if said is not None and round(said) != size:
            raise DataError(f"{where}: {key} is {said:g}, and {frame.picture} has {width} x {height} pixels.")
    _require_straight(where, frame.lens)
    angles = [_number(frame.lens, key, where) for key in ("camera_angle_x", "camera_angle_y")]
    lengths = [_number(frame.lens, key, where) for key in ("fl_x", "fl_y")]
    for axis, size in ((0, width), (1, height)):
        angle = angles[axis]
        if lengths[axis] is None and angle is not None:
            if not 0 < angle < math.pi:
                raise DataError(f"{where}: its field of view, {angle:g}, is no angle between 0 and pi.")
            lengths[axis] = size / 2 / math.tan(angle / 2)
    fx, fy = lengths
    if fx is None:
        raise DataError(f"{where}: neither camera_angle_x nor fl_x is there, so its focal length is not known.")
    fy = fx if fy is None else fy  # of square pixels
    if min(fx, fy) <= 0:
        raise DataError(f"{where}: its focal length, {min(fx, fy):g}, must be positive.")
    cx, cy = (_number(frame.lens, key, where) for key in ("cx", "cy"))
    return (fx, fy), (width / 2 if cx is None else cx, height / 2 if cy is None else cy)


def _number(lens: Mapping[str, Any], key: str, where: str) -> float | None:
    value = lens.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
        raise DataError(f"{where}: {key} is {value!r}, no number of a lens.")
    return float(value)


def _require_straight(where: str, lens: Mapping[str, Any]) -> None:
    model = lens.get("camera_model", "PINHOLE")
    if model not in _MODELS:
        raise DataError(f"{where}: a camera_model {model} is not read. Undistort the pictures to a pinhole camera.")
    bent = [key for key in _LENS if _number(lens, key, where)]
    if bent:
        raise DataError(
            f"{where}: its lens bends lines ({', '.join(bent)}). Undistort the pictures, and leave these numbers out."
        )
