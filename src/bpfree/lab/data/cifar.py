"""Reading the two CIFAR data sets: pickled batches of 3 x 32 x 32 images, from a folder or the publisher's archive.

Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bpfree.lab.data.download import cache_folder, download_members
from bpfree.lab.data.pickled import parse_pickle
from bpfree.lab.data.samples import PUBLISHED
from bpfree.lab.data.splits import Images, Normalization, normalized
from bpfree.lab.errors import DataError

SHAPE = (3, 32, 32)
PUBLISHER = "https://www.cs.toronto.edu/~kriz/"


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One of the publisher's archives.

    Attributes:
        name: The data set's name.
        title: Its name in messages.
        file: The archive's name.
        sha256: Its checksum.
        folder: The folder in it.
        md5: The files that are read -> their published checksums.
    """

    name: str
    title: str
    file: str
    sha256: str
    folder: str
    md5: Mapping[str, str]


@dataclass(frozen=True)
class Pickled:
    """The content of a file, its path, and its checksums."""

    path: Path
    entries: dict[str, Any]
    sha256: str
    md5: str


def read_files(archive: Archive, data_dir: Path | None) -> dict[str, Pickled]:
    """Read the files of a data set by name.

    Args:
        archive: The data set.
        data_dir: A folder that holds them, or holds the archive's folder. None reads the cache folder, after a
            download if needed.

    Raises:
        DataError: A file is missing, truncated, or no pickle of plain values, or cannot be downloaded.
    """
    folder = _downloaded(archive) if data_dir is None else _users_folder(archive, data_dir)
    # One after the other, so that the bytes of one file alone are in memory beside the pixels.
    return {name: _read(folder / name) for name in archive.md5}


def _downloaded(archive: Archive) -> Path:
    folder = cache_folder() / archive.name / archive.folder
    download_members(folder, list(archive.md5), [PUBLISHER + archive.file], archive.sha256)
    return folder


def _users_folder(archive: Archive, data_dir: Path) -> Path:
    for folder in (data_dir, data_dir / archive.folder):
        if any((folder / name).is_file() for name in archive.md5):
            return folder
    raise DataError(
        f"no {archive.title} file in {data_dir} or {data_dir / archive.folder}. Unpack {archive.file} "
        f"({PUBLISHER}cifar.html) there, which has {', '.join(archive.md5)}, or leave out --data-dir to download it."
    )


def _read(path: Path) -> Pickled:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path.name} is missing in {path.parent}. Copy the original file there.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    # MD5 tells which file it is, nothing else: it is what the publisher and other readers give.
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return Pickled(path, parse_pickle(content, str(path)), hashlib.sha256(content).hexdigest(), md5)


def images_of(file: Pickled, key: str, *, n: int, classes: int, title: str) -> tuple[Tensor, Tensor]:
    """Return the pixels of one file, uint8 ``(n, 3, 32, 32)``, and its classes, int64 ``(n,)``.

    Args:
        file: The file.
        key: The name of its labels.
        n: The number of images that it must have.
        classes: The number of classes.
        title: The data set's name in messages.

    Raises:
        DataError: It holds something else.
    """
    pixels, labels = file.entries.get("data"), file.entries.get(key)
    wrong = _what_is_wrong(pixels, labels, n, classes)
    if wrong:
        raise DataError(f"{file.path} is not a batch of {title}: {wrong}. Fetch the original file again.")
    # A row is the red, the green and the blue plane, each row by row.
    return torch.from_numpy(pixels).reshape(-1, *SHAPE), torch.tensor(labels)


def _what_is_wrong(pixels: Any, labels: Any, n: int, classes: int) -> str:
    shape = (n, math.prod(SHAPE))
    if not isinstance(pixels, np.ndarray) or pixels.shape != shape:
        return f"its data has shape {getattr(pixels, 'shape', None)} in place of {shape}"
    if not isinstance(labels, list) or len(labels) != n:
        return f"it has {len(labels) if isinstance(labels, list) else 'no'} labels in place of {n}"
    strange = [label for label in labels if type(label) is not int or not 0 <= label < classes]
    return f"it has a label {strange[0]!r}, which is no number from 0 to {classes - 1}" if strange else ""


def joined(parts: Sequence[tuple[Tensor, Tensor]], normalization: Normalization) -> Images:
    """Return several files' pixels and classes as one set of normalized images."""
    pixels, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return Images(normalized(pixels, normalization), labels)


def origin(archive: Archive, files: Mapping[str, Pickled]) -> str:
    """Return a report's words on the files. The same images come in other containers too: that is told, not refused."""
    others = [name for name, file in files.items() if file.md5 != archive.md5[name]]
    if not others:
        return PUBLISHED
    which = "none is" if len(others) == len(files) else f"all but {', '.join(others)} are"
    return f"{which} byte for byte as published (MD5); order or pixels may differ"
