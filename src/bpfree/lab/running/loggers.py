"""Send each epoch's numbers to CSV files, TensorBoard or another logger of Lightning's kind, beside the run's record.

A logger only listens: it is no setting of a run, changes none of its numbers, and is part of no key.
"""

from __future__ import annotations

import importlib
import inspect
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bpfree.errors import nearest
from bpfree.lab.errors import SettingsError

USUAL = "csv"
_NAMES = {"csv": "lightning.pytorch.loggers.CSVLogger", "tensorboard": "lightning.pytorch.loggers.TensorBoardLogger"}
_NEEDS = {
    "CometLogger": ("comet_ml",),
    "LitLogger": ("litlogger",),
    "MLFlowLogger": ("mlflow",),
    "NeptuneLogger": ("neptune",),
    "TensorBoardLogger": ("tensorboard", "tensorboardX"),
    "WandbLogger": ("wandb",),
}
"""Lightning's loggers -> the package that each needs (any one of them). Lightning itself asks when a run starts."""


def check_logger(name: str) -> None:
    """Find out whether there is such a logger, and whether what it needs is installed: before any training.

    Args:
        name: ``csv``, ``tensorboard``, or the import path of a class.

    Raises:
        SettingsError: There is none, it is no logger, a package is missing, or it cannot be made without arguments.
    """
    if name == USUAL:
        return
    kind = _logger_class(name)
    needed = _NEEDS.get(kind.__name__, ()) if kind.__module__.startswith("lightning.") else ()
    if needed and not any(find_spec(package) for package in needed):
        raise SettingsError(f"--logger {name}: {needed[0]} is not installed: pip install {needed[0]}")
    try:
        inspect.signature(kind).bind(**_arguments(kind, Path()))
    except TypeError as error:
        raise SettingsError(
            f"--logger {name}: it gets save_dir and name, and needs more ({error}). Derive a class from it that gives "
            "the rest."
        ) from error


def make_logger(name: str, folder: Path) -> Any:
    """Make the logger of one run.

    Args:
        name: As for :func:`check_logger`.
        folder: The run's folder, called as the run is. It becomes the logger's ``save_dir``, and its name the
            logger's, where it takes such arguments; csv and tensorboard write to ``log/version_N`` in it.
    """
    kind = _logger_class(name)
    return kind(save_dir=folder, name="log") if name in _NAMES else kind(**_arguments(kind, folder))


def _arguments(kind: type[Any], folder: Path) -> dict[str, Any]:
    taken = inspect.signature(kind).parameters
    return {name: value for name, value in (("save_dir", folder), ("name", folder.name)) if name in taken}


def _logger_class(name: str) -> type[Any]:
    from lightning.pytorch.loggers import Logger  # takes seconds, which a command line with a mistake does not need

    path = _NAMES.get(name, name)
    module, _, last = path.rpartition(".")
    if not module:
        raise SettingsError(f"--logger {name}: name csv, tensorboard or the import path of a class. {_hint(name)}")
    try:
        found = getattr(importlib.import_module(module), last, None)
    except ImportError as error:
        missing = f": pip install {error.name.partition('.')[0]}" if error.name and error.name != module else ""
        raise SettingsError(f"--logger {name}: {module} cannot be imported ({error}){missing}") from error
    if not (isinstance(found, type) and issubclass(found, Logger)):
        raise SettingsError(f"--logger {name}: {module} has no class of this name that is a lightning Logger.")
    return found


def _hint(name: str) -> str:
    return nearest(name, list(_NAMES))
