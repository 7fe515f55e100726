"""The messages of a run beside its progress: no remarks of Lightning, and those of bpfree once."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from bpfree.errors import BpfreeWarning

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
    """Keep these remarks, and no others, off the screen; errors and every other warning come through.

    A :class:`~bpfree.BpfreeWarning` becomes one line on standard error, without the place in this program that Python
    puts beside it, and once in a process: most runs of a comparison would say the same again.
    """
    before = {name: logging.getLogger(name).level for name in _LOGGERS}
    with warnings.catch_warnings():
        _tell_plainly()
        for message in _WARNINGS:
            warnings.filterwarnings("ignore", message)
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)


def _tell_plainly() -> None:
    """Show warnings as plain lines, until the context of warnings ends."""
    show = warnings.showwarning

    def tell(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, BpfreeWarning):
            _tell_once(str(message))
        else:
            show(message, category, *where, **more)

    warnings.showwarning = tell


@cache
def _tell_once(text: str) -> None:
    print(f"bpfree: {text}", file=sys.stderr)
