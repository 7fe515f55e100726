"""MNIST from its original files (LeCun, Cortes and Burges 1998)."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bpfree.lab.data.download import download
from bpfree.lab.data.idx import parse_idx
from bpfree.lab.data.splits import Images, Normalization, Splits, normalized
from bpfree.lab.errors import DataError

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)
"""Where the files are fetched from, in this order; the publisher's own page often refuses. Checksums decide."""


@dataclass(frozen=True)
class Original:
    """One published file: SHA-256 of the .gz file and of what is in it."""

    packed: str
    raw: str


FILES = {
    "train-images-idx3-ubyte": Original(
        packed="440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        raw="ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte": Original(
        packed="3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        raw="65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte": Original(
        packed="8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        raw="0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte": Original(
        packed="f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        raw="ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
_NORMALIZATION = Normalization((0.1307,), (0.3081,))  # mean and standard deviation of the training pixels


def load_mnist(data_dir: Path | None = None) -> Splits:
    """60,000 training and 10,000 test digits, 28 x 28 pixels.

    Args:
        data_dir: A folder with the four idx files, with or without .gz; they may lie in it, in its ``raw`` or in its
            ``MNIST/raw``. None reads the cache folder and downloads what is missing there.

    Raises:
        DataError: A file is missing, truncated or altered, or cannot be downloaded.
    """
    folder = _fetched() if data_dir is None else _folder(data_dir)
    arrays: dict[str, Tensor] = {}
    checksums: dict[str, str] = {}
    for name, original in FILES.items():
        path = _find(folder, name)
        content, checksums[path.name] = _verified(path, original)
        arrays[name] = parse_idx(content, str(path))
    return Splits(
        name="mnist",
        train=_images(arrays, "train"),
        evaluation=_images(arrays, "t10k"),
        classes=10,
        normalization=_NORMALIZATION,
        checksums=checksums,
    )


def _images(arrays: dict[str, Tensor], part: str) -> Images:
    x = normalized(arrays[f"{part}-images-idx3-ubyte"].unsqueeze(1), _NORMALIZATION)
    return Images(x, arrays[f"{part}-labels-idx1-ubyte"].long())


def _folder(data_dir: Path) -> Path:
    for folder in (data_dir, data_dir / "MNIST" / "raw", data_dir / "raw"):
        if any(_candidates(folder, name) for name in FILES):
            return folder
    raise DataError(
        f"no MNIST file in {data_dir}, {data_dir / 'MNIST' / 'raw'} or {data_dir / 'raw'}. "
        f"Put {', '.join(f'{name}.gz' for name in FILES)} there, or leave out --data-dir to download them."
    )


def _candidates(folder: Path, name: str) -> list[Path]:
    return [path for path in (folder / f"{name}.gz", folder / name) if path.is_file()]


def _find(folder: Path, name: str) -> Path:
    found = _candidates(folder, name)
    if not found:
        raise DataError(f"{name}.gz (or {name}) is missing in {folder}. Copy the original file there.")
    return found[0]


def _verified(path: Path, original: Original) -> tuple[bytes, str]:
    """The uncompressed content of a file, and the SHA-256 of the file itself."""
    content = path.read_bytes()
    packed = path.suffix == ".gz"
    checksum, expected = hashlib.sha256(content).hexdigest(), original.packed if packed else original.raw
    if checksum != expected:
        raise DataError(
            f"{path} is truncated or altered: its SHA-256 is {checksum}, that of the original is {expected}. "
            "Fetch the original file again."
        )
    try:
        return gzip.decompress(content) if packed else content, checksum
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be decompressed ({error}). Fetch the original file again.") from error


def _fetched() -> Path:
    folder = cache_folder() / "mnist"
    for name, original in FILES.items():
        path = folder / f"{name}.gz"
        if not path.is_file():
            download(path, [f"{mirror}{name}.gz" for mirror in MIRRORS], original.packed)
    return folder


def cache_folder() -> Path:
    """Where downloads are kept: ``$XDG_CACHE_HOME/bpfree``, by default ``~/.cache/bpfree``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bpfree"
