"""Scenes of a red ball on nothing, in every format, with pictures that are computed pixel by pixel."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT, ANGLE = 24, 16, 0.7
FOCAL = WIDTH / 2 / math.tan(ANGLE / 2)
POSITIONS = [
    (4 * math.cos(angle), 4 * math.sin(angle), 1.0 + 0.3 * number)
    for number, angle in enumerate(2 * math.pi * k / 9 for k in range(9))
]
"""Around the ball, for scenes of Blender and Nerfstudio."""
SYNTHETIC = ("chair", "drums", "ficus", "hotdog", "lego", "materials", "mic", "ship")
REAL = ("room", "fern", "leaves", "fortress", "orchids", "flower", "trex", "horns")
FORWARD = [(0.5 * column - 1, 0.4 * row - 0.4, 0.0) for row in range(3) for column in range(5)]
"""Before the ball at (0, 0, -5), for scenes of LLFF."""


def look_at(position: tuple[float, ...], target: tuple[float, ...], up: tuple[float, ...] = (0, 0, 1)) -> np.ndarray:
    """A camera's pose ``(4, 4)``: x right, y up, and -z towards the target."""
    back = np.subtract(position, target)
    back = back / np.linalg.norm(back)
    right = np.cross(up, back)
    right = right / np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, position], axis=1)
    return pose


def picture(pose: np.ndarray, centre: tuple[float, ...] = (0, 0, 0), *, alpha: bool = True) -> Image.Image:
    """The ball of radius 1, seen by a camera: a pixel is red where the line through its middle meets the ball."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    own = np.stack([(columns - WIDTH / 2) / FOCAL, (HEIGHT / 2 - rows) / FOCAL, -np.ones_like(rows)], axis=-1)
    directions = own @ pose[:3, :3].T
    directions = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    to_centre = np.subtract(centre, pose[:3, 3])
    along = directions @ to_centre
    hit = (to_centre @ to_centre - along**2 < 1) & (along > 0)
    pixels = np.zeros((HEIGHT, WIDTH, 4), dtype=np.uint8)
    pixels[hit] = (200, 30, 30, 255)
    pixels[~hit] = (10, 90, 10, 0)  # a colour under no opacity, which nobody may see
    if not alpha:
        pixels[~hit] = 255
    return Image.fromarray(pixels if alpha else np.ascontiguousarray(pixels[..., :3]))


def frames(folder: Path, names: list[str], poses: list[np.ndarray], **how: Any) -> list[dict[str, Any]]:
    """The entries of a list of views, whose pictures are written."""
    for name, pose in zip(names, poses, strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(pose, **how).save(path if path.suffix else path.with_suffix(".png"))
    return [{"file_path": name, "transform_matrix": pose.tolist()} for name, pose in zip(names, poses, strict=True)]


def blender(folder: Path, *, alpha: bool = True) -> Path:
    """Five views to learn from, two for validation and two for test; names of files have no ending."""
    poses = [look_at(position, (0, 0, 0)) for position in POSITIONS]
    for part, chosen in (("train", slice(5)), ("val", slice(5, 7)), ("test", slice(7, 9))):
        names = [f"./{part}/r_{number}" for number in range(len(poses[chosen]))]
        listed = {"camera_angle_x": ANGLE, "frames": frames(folder, names, poses[chosen], alpha=alpha)}
        (folder / f"transforms_{part}.json").write_text(json.dumps(listed))
    return folder


def nerfstudio(folder: Path, **more: Any) -> Path:
    """Nine photographs in one list, with the numbers of a lens; ``more`` stands in the list beside them."""
    poses = [look_at(position, (0, 0, 0)) for position in POSITIONS]
    names = [f"images/frame_{number:05d}.png" for number in range(len(poses))]
    lens = {"camera_model": "OPENCV", "fl_x": FOCAL, "fl_y": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2}
    lens |= {"w": WIDTH, "h": HEIGHT, "k1": 0.0, "k2": 0.0, "p1": 0.0, "p2": 0.0}
    listed = lens | {"frames": frames(folder, names, poses, alpha=False)} | more
    (folder / "transforms.json").write_text(json.dumps(listed))
    return folder


def llff(folder: Path, factor: int = 2) -> Path:
    """Fifteen photographs of a ball at (0, 0, -5), from cameras side by side; axes in the order of the format."""
    poses = [look_at(position, (0, 0, -5), (0, 1, 0)) for position in FORWARD]
    names = [f"images_{factor}/view{number:02d}.png" for number in range(len(poses))]
    for name, pose in zip(names, poses, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(pose, (0, 0, -5), alpha=False).save(folder / name)
    np.save(folder / "poses_bounds.npy", np.stack([row(pose, factor) for pose in poses]))
    return folder


def archive(place: Path) -> Path:
    """The published scenes by their folders' names, each of its own pictures; LLFF's at a quarter and an eighth."""
    for name in (*SYNTHETIC, "lego_100"):
        folder = blender(place / "nerf_synthetic" / name)
        _mark(folder / "train" / "r_0.png", name)
    for name in REAL:
        folder = llff(place / "nerf_llff_data" / name, 8)
        (folder / "images_4").mkdir()
        for path in sorted((folder / "images_8").iterdir()):
            _mark(path, name)
            with Image.open(path) as one:
                one.resize((2 * WIDTH, 2 * HEIGHT)).save(folder / "images_4" / path.name)
    return place


def _mark(path: Path, text: str) -> None:
    """Change one pixel, by a colour of the text's own."""
    with Image.open(path) as one:
        changed = one.copy()
    colour = tuple(hashlib.sha256(text.encode()).digest()[:3])
    changed.putpixel((0, 0), (*colour, 255) if changed.mode == "RGBA" else colour)
    changed.save(path)


def row(pose: np.ndarray, factor: int = 2, near: float = 4.0, far: float = 7.0) -> np.ndarray:
    """A camera as LLFF has it: down, right, back, position, and size and focal length of the original picture."""
    right, up, back, position = pose[:3].T
    size = np.array([HEIGHT * factor, WIDTH * factor, FOCAL * factor])
    return np.concatenate([np.stack([-up, right, back, position, size], axis=1).ravel(), [near, far]])
