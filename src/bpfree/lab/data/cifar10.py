"""CIFAR-10 from its standard files for Python (Krizhevsky 2009, "Learning Multiple Layers of Features")."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bpfree.lab.data.pickled import parse_pickle
from bpfree.lab.data.splits import Images, Normalization, Splits, normalized
from bpfree.lab.errors import DataError

FOLDER = "cifar-10-batches-py"
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = "test_batch"
META = "batches.meta"
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
"""Of the published files. The same images come in other containers too, so another sum is told, and not refused."""
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGES = 10_000
"""In each file."""
_SHAPE = (3, 32, 32)
_NORMALIZATION = Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))  # of the training pixels


def load_cifar10(data_dir: Path | None = None) -> Splits:
    """50,000 training and 10,000 test images of ten classes, 3 x 32 x 32 pixels, in the files' order.

    Args:
        data_dir: A folder with the files data_batch_1 to data_batch_5, test_batch and batches.meta; they may lie in it
            or in its ``cifar-10-batches-py``.

    Raises:
        DataError: No folder is given, or a file is missing, truncated, or not what its name says.
    """
    folder = _folder(data_dir)
    # One after the other, so that the bytes of one file alone are in memory beside the pixels.
    files = {name: _read(folder / name) for name in (*TRAIN, TEST, META)}
    _check_classes(files[META], folder / META)
    parts = {name: _images(files[name], folder / name) for name in (*TRAIN, TEST)}
    return Splits(
        name="cifar10",
        train=_joined([parts[name] for name in TRAIN]),
        evaluation=_joined([parts[TEST]]),
        classes=len(CLASSES),
        normalization=_NORMALIZATION,
        checksums={name: file.sha256 for name, file in files.items()},
        origin=_origin([name for name, file in files.items() if file.md5 != MD5[name]]),
    )


@dataclass(frozen=True)
class _File:
    """What is in a file, and its checksums."""

    entries: dict[str, Any]
    sha256: str
    md5: str


def _folder(data_dir: Path | None) -> Path:
    needed = f"{TRAIN[0]} to {TRAIN[-1]}, {TEST} and {META}: unpack cifar-10-python.tar.gz (www.cs.toronto.edu/~kriz)"
    if data_dir is None:
        raise DataError(f"cifar10 is not downloaded. Pass --data-dir DIR, a folder with {needed} there.")
    for folder in (data_dir, data_dir / FOLDER):
        if any((folder / name).is_file() for name in MD5):
            return folder
    raise DataError(f"no CIFAR-10 file in {data_dir} or {data_dir / FOLDER}. One of them must hold {needed} there.")


def _read(path: Path) -> _File:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path.name} is missing in {path.parent}. Copy the original file there.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    # MD5 tells which file it is, nothing else: it is what the publisher and other readers give.
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return _File(parse_pickle(content, str(path)), hashlib.sha256(content).hexdigest(), md5)


def _check_classes(file: _File, path: Path) -> None:
    names = file.entries.get("label_names")
    # Texts are bytes if Python 2 wrote the file.
    if not isinstance(names, list) or names not in (list(CLASSES), [name.encode() for name in CLASSES]):
        raise DataError(f"{path} names other classes than {', '.join(CLASSES)}. Fetch the original file again.")


def _images(file: _File, path: Path) -> tuple[Tensor, Tensor]:
    """The pixels of one file, uint8 ``(n, 3, 32, 32)``, and its classes, int64 ``(n,)``."""
    pixels, labels = file.entries.get("data"), file.entries.get("labels")
    wrong = _what_is_wrong(pixels, labels)
    if wrong:
        raise DataError(f"{path} is not a batch of CIFAR-10: {wrong}. Fetch the original file again.")
    # A row is the red, the green and the blue plane, each row by row.
    return torch.from_numpy(pixels).reshape(-1, *_SHAPE), torch.tensor(labels)


def _what_is_wrong(pixels: Any, labels: Any) -> str:
    shape = (IMAGES, int(np.prod(_SHAPE)))
    if not isinstance(pixels, np.ndarray) or pixels.shape != shape:
        return f"its data has shape {getattr(pixels, 'shape', None)} in place of {shape}"
    if not isinstance(labels, list) or len(labels) != IMAGES:
        return f"it has {len(labels) if isinstance(labels, list) else 'no'} labels in place of {IMAGES}"
    strange = [label for label in labels if type(label) is not int or not 0 <= label < len(CLASSES)]
    return f"it has a label {strange[0]!r}, which is no number from 0 to {len(CLASSES) - 1}" if strange else ""


def _joined(parts: list[tuple[Tensor, Tensor]]) -> Images:
    pixels, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return Images(normalized(pixels, _NORMALIZATION), labels)


def _origin(others: list[str]) -> str:
    """What a report says of the files, of which ``others`` have another checksum than the published ones."""
    if not others:
        return "the published files, byte for byte"
    which = "none is" if len(others) == len(MD5) else f"all but {', '.join(others)} are"
    return f"{which} byte for byte as published (MD5); order or pixels may differ"
