"""CIFAR-100 from its standard files for Python (Krizhevsky 2009, "Learning Multiple Layers of Features")."""

from __future__ import annotations

from pathlib import Path

from bpfree.lab.data.cifar import Archive, images_of, joined, origin, read_files
from bpfree.lab.data.splits import Normalization, Splits

MD5 = {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}
"""Of the published files. The third, ``meta``, only names the classes, and is not read."""
SHA256 = "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"
"""Of the published archive."""
IMAGES = {"train": 50_000, "test": 10_000}
"""In each file."""
CLASSES = 100
_NORMALIZATION = Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))  # of the training pixels


def load_cifar100(data_dir: Path | None = None) -> Splits:
    """Load 50,000 training and 10,000 test images of a hundred classes (fine labels), 3 x 32 x 32 pixels.

    Args:
        data_dir: A folder with the files train and test; they may lie in it or in its ``cifar-100-python``. None reads
            the cache folder, after a download (169 MB) if needed.

    Raises:
        DataError: A file is missing, truncated, or not what its name says, or cannot be downloaded.
    """
    archive = Archive(
        name="cifar100",
        title="CIFAR-100",
        file="cifar-100-python.tar.gz",
        sha256=SHA256,
        folder="cifar-100-python",
        md5=MD5,
    )
    files = read_files(archive, data_dir)
    train, test = (
        joined([images_of(files[name], "fine_labels", n=n, classes=CLASSES, title=archive.title)], _NORMALIZATION)
        for name, n in IMAGES.items()
    )
    return Splits(
        name=archive.name,
        train=train,
        evaluation=test,
        classes=CLASSES,
        normalization=_NORMALIZATION,
        checksums={name: file.sha256 for name, file in files.items()},
        origin=origin(archive, files),
    )
