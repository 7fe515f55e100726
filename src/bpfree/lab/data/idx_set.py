"""Data sets in four idx files, named and laid out as those of MNIST."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bpfree.lab.data.download import cache_folder, download
from bpfree.lab.data.idx import parse_idx
from bpfree.lab.data.splits import Images, Normalization, Splits, normalized
from bpfree.lab.disk.bounded import contents, unpacked
from bpfree.lab.errors import DataError


@dataclass(frozen=True)
class Original:
    """One published file: SHA-256 of the .gz file and of its unpacked content."""

    packed: str
    raw: str


@dataclass(frozen=True, kw_only=True)
class IdxSet:
    """A data set of ten classes in four files: images and labels, ``train-`` and ``t10k-``.

    Attributes:
        name: The data set's name.
        title: Its name in messages.
        files: File name without .gz -> the published file.
        mirrors: Addresses that the files' names are put behind, in the order in which they are tried.
        subfolders: Where the files may lie below the folder that the user names, beside that folder itself.
        normalization: The normalization of the pixels.
        installed: A folder where a system's package puts the files.
    """

    name: str
    title: str
    files: Mapping[str, Original]
    mirrors: Sequence[str]
    subfolders: Sequence[str]
    normalization: Normalization
    installed: Path | None = None


def load_idx(source: IdxSet, data_dir: Path | None) -> Splits:
    """Load both parts of a data set, one channel, pixels normalized.

    Args:
        source: The data set.
        data_dir: A folder with the four files, with or without .gz. None takes the installed ones, else those in the
            cache folder, and downloads what is missing there.

    Raises:
        DataError: A file is missing, truncated or altered, or cannot be downloaded.
    """
    folder = _own_folder(source) if data_dir is None else _users_folder(source, data_dir)
    arrays: dict[str, Tensor] = {}
    checksums: dict[str, str] = {}
    for name, original in source.files.items():
        path = _find(folder, name)
        content, checksums[path.name] = _verified(path, original)
        arrays[name] = parse_idx(content, str(path))
    return Splits(
        name=source.name,
        train=_images(arrays, "train", source.normalization),
        evaluation=_images(arrays, "t10k", source.normalization),
        classes=10,
        normalization=source.normalization,
        checksums=checksums,
    )


def _images(arrays: dict[str, Tensor], part: str, normalization: Normalization) -> Images:
    x = normalized(arrays[f"{part}-images-idx3-ubyte"].unsqueeze(1), normalization)
    return Images(x, arrays[f"{part}-labels-idx1-ubyte"].long())


def _users_folder(source: IdxSet, data_dir: Path) -> Path:
    folders = [data_dir, *(data_dir / below for below in source.subfolders)]
    for folder in folders:
        if any(_candidates(folder, name) for name in source.files):
            return folder
    raise DataError(
        f"no {source.title} file in {', '.join(map(str, folders[:-1]))} or {folders[-1]}. "
        f"Put {', '.join(f'{name}.gz' for name in source.files)} there, or leave out --data-dir to download them."
    )


def _own_folder(source: IdxSet) -> Path:
    if source.installed is not None and source.installed.is_dir():
        return source.installed
    folder = cache_folder() / source.name
    for name, original in source.files.items():
        download(folder / f"{name}.gz", [f"{mirror}{name}.gz" for mirror in source.mirrors], original.packed)
    return folder


def _candidates(folder: Path, name: str) -> list[Path]:
    return [path for path in (folder / f"{name}.gz", folder / name) if path.is_file()]


def _find(folder: Path, name: str) -> Path:
    found = _candidates(folder, name)
    if not found:
        raise DataError(f"{name}.gz (or {name}) is missing in {folder}. Copy the original file there.")
    return found[0]


_LARGEST = 16 + 60_000 * 28 * 28  # bytes of the training images, the largest of the files


def _verified(path: Path, original: Original) -> tuple[bytes, str]:
    """Return the uncompressed content of a file, and the SHA-256 of the file itself."""
    if path.suffix != ".gz":
        content = contents(path)
        checksum = hashlib.sha256(content).hexdigest()
        _check(path, checksum, original.raw)
        return content, checksum
    checksum = hashlib.sha256(contents(path)).hexdigest()
    inside = hashlib.sha256()
    try:
        content = unpacked(path, inside.update, limit=_LARGEST)
    except DataError:
        _check(path, checksum, original.packed)  # which says more
        raise
    # Others have compressed the same bytes anew, without the file's name and date: Debian does.
    if inside.hexdigest() != original.raw:
        _check(path, checksum, original.packed)
    return content, checksum


def _check(path: Path, checksum: str, expected: str) -> None:
    if checksum != expected:
        raise DataError(
            f"{path} is truncated or altered: its SHA-256 is {checksum}, that of the original is {expected}. "
            "Fetch the original file again."
        )
