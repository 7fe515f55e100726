"""Lightning's remarks that do not concern this program's users."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = (
    # Which accelerators there are, advertisements ("Tip: ..."), "`max_epochs` reached".
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.accelerators.cuda",
)
_WARNINGS = (
    # Batches come out of memory: worker processes would only copy them.
    r".*does not have many workers.*",
    # A run of few batches logs once an epoch; the steps between are not written anywhere.
    r".*smaller than the logging interval.*",
    # A resumed run writes into the folder of the run that it continues.
    r".*Checkpoint directory .* exists and is not empty.*",
    # Lightning asks torch something in a way that torch has moved on from.
    r".*LeafSpec.*is deprecated.*",
    # A learner that evaluates by itself.
    r".*defined a `validation_step` but have no `val_dataloader`.*",
    # A GPU that is not asked for.
    r".*GPU available but not used.*",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep these remarks, and no others, off the screen; errors and every other warning come through."""
    before = {name: logging.getLogger(name).level for name in _LOGGERS}
    with warnings.catch_warnings():
        for message in _WARNINGS:
            warnings.filterwarnings("ignore", message)
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)
