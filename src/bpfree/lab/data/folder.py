"""A folder of pictures laid out as ImageNet's: one folder a class, in one folder a split."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bpfree.lab.data.lazy import Lazy
from bpfree.lab.data.picture import picture
from bpfree.lab.data.preparation import ImageSettings
from bpfree.lab.data.splits import Images, Normalization, Splits, normalized
from bpfree.lab.errors import DataError

ENDINGS = (".jpg", ".jpeg", ".png")
TRAIN = "train"
EVALUATION = ("val", "test")
"""The folders to measure on: the first that exists is used. ImageNet's test images have no published labels."""
SIZE = 224
_NORMALIZATION = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of ImageNet's training pixels


def load_folder(data_dir: Path | None = None, settings: ImageSettings | None = None) -> Splits:
    """Load pictures as ``train/CLASS/NAME.jpg`` (or .jpeg, .png) and ``val/CLASS/...`` or ``test/CLASS/...``.

    They are decoded when a batch needs them: the shorter edge is scaled to ``size`` pixels, and the middle is kept.
    Classes are numbered in the order of their names. The checksums are of names and sizes of files, not of what is in
    them: reading all of ImageNet for that would take longer than a short run.

    Args:
        data_dir: The folder.
        settings: Size (by default 224) and normalization (by default ImageNet's).

    Raises:
        DataError: No folder is given, or it has no such pictures. One that cannot be decoded is named when it is met.
        SettingsError: ``mean`` or ``std`` do not fit three channels.
    """
    settings = settings or ImageSettings()
    if data_dir is None:
        raise DataError("folder: pass --data-dir DIR, a folder with train/CLASS/*.jpg and val/CLASS/*.jpg.")
    normalization = settings.normalization(_NORMALIZATION)
    held_out = _evaluation_folder(data_dir)
    classes = _classes(data_dir / TRAIN)
    unknown = sorted(set(_classes(held_out)) - set(classes))
    if unknown:
        raise DataError(f"{held_out / unknown[0]}: {data_dir / TRAIN} has no class of this name.")
    parts = {place.name: _files(place, classes) for place in (data_dir / TRAIN, held_out)}
    train, evaluation = (_images(files, settings.size or SIZE, normalization) for files in parts.values())
    return Splits(
        name="folder",
        train=train,
        evaluation=evaluation,
        classes=len(classes),
        normalization=normalization,
        measured_on="test" if held_out.name == "test" else "validation",
        checksums={name: _checksum(data_dir, files) for name, files in parts.items()},
        origin="checksums are of the names and sizes of the files",
    )


def _evaluation_folder(data_dir: Path) -> Path:
    for name in EVALUATION:
        if (data_dir / name).is_dir():
            return data_dir / name
    raise DataError(f"{data_dir} has no folder {' or '.join(EVALUATION)}, with a folder of pictures for each class.")


def _classes(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if not names:
        raise DataError(f"{folder} is missing or holds no folders. Put one folder of pictures there for each class.")
    return names


def _files(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Return every picture and its class's number, in the order of classes and names."""
    found: list[tuple[Path, int]] = []
    for number, name in enumerate(classes):
        place = folder / name
        # What is measured on may lack some classes.
        entries = sorted(place.iterdir()) if place.is_dir() else []
        pictures = [(path, number) for path in entries if path.suffix.lower() in ENDINGS]
        if place.is_dir() and not pictures:
            raise DataError(f"{place} holds no picture ({', '.join(ENDINGS)}).")
        found += pictures
    return found


def _checksum(data_dir: Path, files: Sequence[tuple[Path, int]]) -> str:
    found = hashlib.sha256()
    for path, _ in files:
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}): mend the link, or delete it.") from error
        # The name's own bytes, which need not be text.
        found.update(os.fsencode(path.relative_to(data_dir).as_posix()) + f" {size}\n".encode())
    return found.hexdigest()


def _images(files: Sequence[tuple[Path, int]], size: int, normalization: Normalization) -> Images:
    # As arrays of bytes: a million Path objects would take half a gigabyte.
    names = np.array([os.fsencode(path) for path, _ in files])
    labels = torch.tensor([number for _, number in files])
    make = partial(_decoded, names, size, normalization)
    return Images(Lazy(make, torch.arange(len(labels)), (3, size, size)), labels)


def _decoded(names: np.ndarray, size: int, normalization: Normalization, rows: Tensor) -> Tensor:
    """Return the pictures with these numbers, float32 ``(k, 3, size, size)``."""
    paths = [Path(os.fsdecode(name)) for name in names[rows.numpy()]]
    # Threads: pillow lets others run while it decodes and scales.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        pixels = list(pool.map(partial(picture, size=size), paths))
    stacked = torch.from_numpy(np.stack(pixels)) if pixels else torch.empty((0, size, size, 3), dtype=torch.uint8)
    return normalized(stacked.permute(0, 3, 1, 2), normalization).contiguous()
