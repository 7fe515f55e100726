"""Fashion-MNIST from its original files (Xiao, Rasul and Vollgraf 2017)."""

from __future__ import annotations

from pathlib import Path

from bpfree.lab.data.idx_set import IdxSet, Original, load_idx
from bpfree.lab.data.splits import Normalization, Splits

MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)
"""The addresses of the files, in the order in which they are tried. Checksums decide."""
FILES = {
    "train-images-idx3-ubyte": Original(
        packed="3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        raw="c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "train-labels-idx1-ubyte": Original(
        packed="a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        raw="bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "t10k-images-idx3-ubyte": Original(
        packed="346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        raw="5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "t10k-labels-idx1-ubyte": Original(
        packed="67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        raw="0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
"""The folder of the files in Debian's package dataset-fashion-mnist."""
_NORMALIZATION = Normalization((0.2860,), (0.3530,))  # mean and standard deviation of the training pixels


def load_fashion_mnist(data_dir: Path | None = None) -> Splits:
    """Load 60,000 training and 10,000 test pictures of clothes, ten classes, 28 x 28 pixels.

    Args:
        data_dir: A folder with the four idx files, with or without .gz; they may lie in it, in its ``raw`` or in its
            ``FashionMNIST/raw``. None takes those of Debian's package dataset-fashion-mnist, else those in the cache
            folder, and downloads what is missing there.

    Raises:
        DataError: A file is missing, truncated or altered, or cannot be downloaded.
    """
    source = IdxSet(
        name="fashion-mnist",
        title="Fashion-MNIST",
        files=FILES,
        mirrors=MIRRORS,
        subfolders=("FashionMNIST/raw", "raw"),
        normalization=_NORMALIZATION,
        installed=INSTALLED,
    )
    return load_idx(source, data_dir)
