"""Scenes of LLFF (Mildenhall et al. 2019): photographs, and ``poses_bounds.npy`` made by its scripts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bpfree.lab.data.scenes.cameras import Cameras, require_pose
from bpfree.lab.data.scenes.photographs import ENDINGS, checksum, read_pictures
from bpfree.lab.data.scenes.scene import Scene, Views, spread
from bpfree.lab.data.scenes.settings import SceneSettings
from bpfree.lab.disk.bounded import contents
from bpfree.lab.disk.files import storable
from bpfree.lab.errors import DataError, SettingsError

_FILE = "poses_bounds.npy"
_NEAREST = 4 / 3
"""The distance of the nearest thing, in the units of the scene: rays may begin at the plane z = -1."""
_MARGIN = 0.9
"""The part of the nearest bound at which rays begin in a scene that is not mapped to normalized device coordinates."""


def load_llff(data_dir: Path | None, settings: SceneSettings | None = None) -> Scene:
    """Read ``poses_bounds.npy`` and the pictures in ``images``, or in ``images_N``, where they are N times smaller.

    As in the code of Mildenhall et al. 2020: lengths are divided by 0.75 times the nearest bound, the mean of all
    cameras becomes the origin and looks along -z, and every eighth view, from the first on, is held out.

    Args:
        data_dir: The scene's folder.
        settings: The options for reading it.

    Raises:
        DataError: No folder is given; the file is missing or damaged; a pose is no rotation; near is behind far; the
            pictures do not match it; no views are left to learn from.
        SettingsError: The bounds mean nothing.
    """
    settings = settings or SceneSettings()
    if data_dir is None:
        raise DataError(f"llff: pass --data-dir DIR, a scene's folder, with {_FILE} and images_8, say.")
    path = data_dir / _FILE
    rows = _read(path)
    folder, factor = _pictures_folder(data_dir, settings.factor)
    pictures = sorted(entry for entry in folder.iterdir() if entry.suffix.lower() in ENDINGS)
    if len(pictures) != len(rows):
        raise DataError(f"{folder} has {len(pictures)} pictures, and {path} has the poses of {len(rows)}.")
    pixels = read_pictures(pictures, settings.channels)
    height, width = pixels.shape[1:3]
    _require_size(rows, path, folder, factor, (height, width))
    poses = centred(_poses(rows, path, pictures))
    focal = torch.from_numpy(rows[:, 14] * width / rows[:, 9])[:, None].expand(-1, 2)
    centre = torch.tensor([[width / 2, height / 2]], dtype=torch.float64).expand(len(rows), 2)
    near, far = _bounds(rows, path, settings)
    scale = _scale(poses, path, focal[0], width, height) if settings.ndc else None
    cameras = Cameras(torch.from_numpy(poses), focal, centre, width, height, near, far, scale)
    views = Views(pixels, cameras, settings.background or 0.0, tuple(picture.name for picture in pictures))
    number = torch.arange(len(rows))
    held_out, train = number[:: settings.hold_out], number[number % settings.hold_out > 0]
    if not len(train):
        raise DataError(f"{path}: of {len(rows)} views {len(held_out)} are held out, and none is left to learn from.")
    return Scene(
        name=storable(data_dir.resolve().name),
        train=views.choose(train),
        evaluation=views.choose(held_out[spread(len(held_out), settings.views)]),
        measured_on="test",
        checksums={path.name: hashlib.sha256(contents(path)).hexdigest(), folder.name: checksum(pictures)},
    )


def _read(path: Path) -> np.ndarray:
    """Return the rows of the file, float64 ``(n, 17)``: a pose, height, width and focal length as 3 x 5, near and far.

    Raises:
        DataError: It is missing or something else.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing. Name the scene's folder, in which it lies beside images or images_8.")
    try:
        # Mapped, so that a header cannot declare more than the file has.
        rows = np.array(np.load(path, mmap_mode="r", allow_pickle=False), dtype=np.float64)
    # Anything may lie there under this name, and numpy fails in many ways.
    except Exception as error:
        raise DataError(f"{path} is no file of numpy's ({error}). Fetch it again, or make it anew.") from error
    if rows.ndim != 2 or rows.shape[1] != 17 or not len(rows):
        raise DataError(f"{path} has the shape {rows.shape}; it needs 17 numbers for each view.")
    if not np.isfinite(rows).all():
        raise DataError(f"{path} holds numbers that are not finite. Make it anew.")
    for number, (near, far) in enumerate(rows[:, 15:]):
        if not 0 < near < far:
            raise DataError(f"{path}: row {number} has near {near:g} and far {far:g}; 0 < near < far must hold.")
    if rows[:, [4, 9, 14]].min() <= 0:
        raise DataError(f"{path}: height, width and focal length must be positive.")
    return rows


def _pictures_folder(data_dir: Path, factor: int | None) -> tuple[Path, int]:
    """Return the folder of the pictures, and how many times smaller they are than the original ones."""
    names = (entry.name for entry in data_dir.iterdir() if entry.is_dir())
    there = {
        int(match[1] or 1): data_dir / match[0]
        for match in (re.fullmatch(r"images(?:_([1-9]\d*))?", n) for n in names)
        if match
    }
    shown = ", ".join(path.name for _, path in sorted(there.items())) or "none"
    if factor is None and len(there) == 1:
        ((factor, folder),) = there.items()
        return folder, factor
    if factor is None:
        raise DataError(
            f"{data_dir}: name one folder of pictures by --scene.factor N, of images_N; there are: {shown}."
        )
    if factor not in there:
        raise DataError(f"{data_dir}: --scene.factor {factor} names no folder of pictures; there are: {shown}.")
    return there[factor], factor


def _require_size(rows: np.ndarray, path: Path, folder: Path, factor: int, size: tuple[int, int]) -> None:
    """Raise DataError unless pictures of this height and width are the original ones, ``factor`` times smaller."""
    for number, said in enumerate(rows[:, [4, 9]]):
        # Programs round a size up or down.
        if np.abs(said / factor - size).max() >= 1:
            raise DataError(
                f"{folder} has pictures of {size[1]} x {size[0]} pixels; row {number} of {path} says {said[1]:g} x "
                f"{said[0]:g}, which {factor} times smaller is {said[1] / factor:g} x {said[0] / factor:g}."
            )


def _poses(rows: np.ndarray, path: Path, pictures: Sequence[Path]) -> np.ndarray:
    """Return poses ``(n, 3, 4)`` in the axes of :mod:`bpfree.lab.data.scenes.cameras`, in units of the scene."""
    found = rows[:, :15].reshape(-1, 3, 5)
    down, right, back, position = (found[:, :, column] for column in range(4))
    poses = np.stack([right, -down, back, position * _NEAREST / rows[:, 15:].min()], axis=2)
    for number, pose in enumerate(poses):
        require_pose(pose, f"{path}: row {number}, {pictures[number].name}")
    return poses


def centred(poses: np.ndarray) -> np.ndarray:
    """Return the poses ``(n, 3, 4)`` in the coordinates of their mean camera.

    That stands at the mean of their positions, looks along the mean of their directions, and has the mean of their
    upward axes above it.
    """
    back = _unit(poses[:, :, 2].sum(0))
    right = _unit(np.cross(poses[:, :, 1].sum(0), back))
    rotation = np.stack([right, np.cross(back, right), back], axis=1)
    position = poses[:, :, 3].mean(0)
    return np.concatenate([rotation.T @ poses[:, :, :3], rotation.T @ (poses[:, :, 3:] - position[:, None])], axis=2)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def _bounds(rows: np.ndarray, path: Path, settings: SceneSettings) -> tuple[float, float]:
    """Return where rays begin and end."""
    if not settings.ndc:
        unit = _NEAREST / rows[:, 15:].min()
        return settings.bounds(_MARGIN * _NEAREST, float(unit * rows[:, 15:].max()), str(path))
    for name in ("near", "far"):
        if getattr(settings, name) is not None:
            raise SettingsError(
                f"--scene.{name}: in normalized device coordinates rays go from 0 to 1. Leave it out, or name "
                "--scene.ndc false."
            )
    return 0.0, 1.0


def _scale(poses: np.ndarray, path: Path, focal: Tensor, width: int, height: int) -> tuple[float, float]:
    """Return the scale of normalized device coordinates: one for all views, whatever the focal length of each.

    Raises:
        DataError: Some camera does not look forward.
    """
    if poses[:, 2, 2].min() <= 0:
        raise DataError(
            f"{path}: some cameras look back, and normalized device coordinates are for those that look forward. Name "
            "--scene.ndc false."
        )
    return 2 * float(focal[0]) / width, 2 * float(focal[1]) / height
