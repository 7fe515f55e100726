"""The pictures of a scene, pixel by pixel as their files have them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bpfree.lab.data.picture import FORMATS, colours, turn
from bpfree.lab.data.scenes.settings import Channels
from bpfree.lab.disk.bounded import contents
from bpfree.lab.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg")


def find_picture(folder: Path, name: str, listed: Path) -> Path:
    """Return the file of a view; endings may be left out, as in Blender's scenes.

    Args:
        folder: The scene's folder.
        name: The view's name in the file ``listed``.
        listed: That file.

    Raises:
        DataError: There is no such file.
    """
    path = folder / name
    for candidate in (path, *(Path(f"{path}{ending}") for ending in ENDINGS)):
        if os.path.isfile(candidate):  # False for a name that is too long, where pathlib raises
            return candidate
    tried = "" if path.suffix.lower() in ENDINGS else f" (or with {', '.join(ENDINGS)})"
    raise DataError(
        f"{listed} lists the view {path}{tried}, which is missing. Copy it there, or leave it out of the list."
    )


def read_pictures(paths: Sequence[Path], channels: Channels) -> Tensor:
    """Read pictures of one size, red, green, blue and transparency if there is one: uint8 ``(n, height, width, c)``.

    Raises:
        DataError: One cannot be decoded, has another size or other channels than the first, or other ones than told.
    """
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = list(pool.map(_pixels, paths))
    height, width, c = found[0].shape
    for path, pixels in zip(paths, found, strict=True):
        if pixels.shape[:2] != (height, width):
            raise DataError(
                f"{path} has {pixels.shape[1]} x {pixels.shape[0]} pixels, {paths[0].name} has {width} x {height}: all "
                "views of a scene have one size."
            )
        if pixels.shape[2] != c:
            raise DataError(
                f"{path} is {_kind(pixels)}, {paths[0].name} is {_kind(found[0])}: all views have the same."
            )
        _require_channels(path, pixels, channels)
    return torch.from_numpy(np.stack(found))


def checksum(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of the contents of pictures, one after another."""
    found = hashlib.sha256()
    for path in paths:
        found.update(contents(path))
    return found.hexdigest()


def _pixels(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=FORMATS) as image, turn(image, path):
            # Not turned upright by the camera's note: poses are of the pixels as they are stored.
            transparent = "A" in image.getbands() or "transparency" in image.info
            return np.asarray(image.convert("RGBA") if transparent else colours(image))
    # Damaged pictures make decoders fail in many ways.
    except Exception as error:
        raise DataError(f"{path} cannot be decoded ({error}). Replace it.") from error


def _require_channels(path: Path, pixels: np.ndarray, channels: Channels) -> None:
    if channels != "any" and _kind(pixels).lower() != channels:
        raise DataError(
            f"{path} is {_kind(pixels)}, and --scene.channels says {channels}: leave that out, or convert the pictures."
        )


def _kind(pixels: np.ndarray) -> str:
    return "RGBA" if pixels.shape[2] == 4 else "RGB"
