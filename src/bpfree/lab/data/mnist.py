"""MNIST from its original files (LeCun, Cortes and Burges 1998)."""

from __future__ import annotations

from pathlib import Path

from bpfree.lab.data.idx_set import IdxSet, Original, load_idx
from bpfree.lab.data.splits import Normalization, Splits

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)
"""The addresses of the files, in the order in which they are tried; the publisher's often refuses. Checksums decide."""
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
    """Load 60,000 training and 10,000 test digits, 28 x 28 pixels.

    Args:
        data_dir: A folder with the four idx files, with or without .gz; they may lie in it, in its ``raw`` or in its
            ``MNIST/raw``. None reads the cache folder and downloads what is missing there.

    Raises:
        DataError: A file is missing, truncated or altered, or cannot be downloaded.
    """
    source = IdxSet(
        name="mnist",
        title="MNIST",
        files=FILES,
        mirrors=MIRRORS,
        subfolders=("MNIST/raw", "raw"),
        normalization=_NORMALIZATION,
    )
    return load_idx(source, data_dir)
