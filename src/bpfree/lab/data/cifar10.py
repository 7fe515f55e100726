"""CIFAR-10 from its standard files for Python (Krizhevsky 2009, "Learning Multiple Layers of Features")."""

from __future__ import annotations

from pathlib import Path

from bpfree.lab.data.cifar import Archive, Pickled, images_of, joined, origin, read_files
from bpfree.lab.data.splits import Normalization, Splits
from bpfree.lab.errors import DataError

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
"""Of the published files."""
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
"""Of the published archive."""
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGES = 10_000
"""In each file."""
_NORMALIZATION = Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))  # of the training pixels


def load_cifar10(data_dir: Path | None = None) -> Splits:
    """Load 50,000 training and 10,000 test images of ten classes, 3 x 32 x 32 pixels, in the files' order.

    Args:
        data_dir: A folder with the files data_batch_1 to data_batch_5, test_batch and batches.meta; they may lie in it
            or in its ``cifar-10-batches-py``. None reads the cache folder, after a download (170 MB) if needed.

    Raises:
        DataError: A file is missing, truncated, or not what its name says, or cannot be downloaded.
    """
    archive = Archive(
        name="cifar10",
        title="CIFAR-10",
        file="cifar-10-python.tar.gz",
        sha256=SHA256,
        folder="cifar-10-batches-py",
        md5=MD5,
    )
    files = read_files(archive, data_dir)
    _check_classes(files[META])
    parts = {
        name: images_of(files[name], "labels", n=IMAGES, classes=len(CLASSES), title=archive.title)
        for name in (*TRAIN, TEST)
    }
    return Splits(
        name=archive.name,
        train=joined([parts[name] for name in TRAIN], _NORMALIZATION),
        evaluation=joined([parts[TEST]], _NORMALIZATION),
        classes=len(CLASSES),
        normalization=_NORMALIZATION,
        checksums={name: file.sha256 for name, file in files.items()},
        origin=origin(archive, files),
    )


def _check_classes(file: Pickled) -> None:
    names = file.entries.get("label_names")
    # Texts are bytes if Python 2 wrote the file.
    if not isinstance(names, list) or names not in (list(CLASSES), [name.encode() for name in CLASSES]):
        raise DataError(f"{file.path} names other classes than {', '.join(CLASSES)}. Fetch the original file again.")
