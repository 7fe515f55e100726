"""Probabilities of clicks by a trained run, row by row of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from bpfree.lab.disk.files import replacing
from bpfree.lab.errors import DataError, RunError, SettingsError
from bpfree.lab.extras import missing
from bpfree.lab.kept.clicks import KeptClicks, find_clicks_run, load_clicks_run
from bpfree.lab.options.predict import PredictOptions
from bpfree.lab.process.environment import device

try:
    import polars as pl
except ModuleNotFoundError as error:
    raise SettingsError(f"bpfree predict: {missing(error) or error}") from error

_ROWS = 2**13  # rows that the model sees at once
PROBABILITY, ROW = "probability", "row"
"""The columns of the result that are no identifiers."""


def predict(options: PredictOptions, console: Console | None = None) -> Path:
    """Write the probabilities of a file's rows, in the order of the rows.

    Memory holds one piece of the file at a time. The result is there whole or not at all.

    Args:
        options: The run, the file, and where to write.
        console: Where the result's path is shown; None shows nothing.

    Returns:
        The result's path.

    Raises:
        RunError: There is no such run, or no checkpoint in it.
        DataError: The file is missing or damaged, lacks a column, or has more bad rows than the run's schema allows.
        DamageError: A file of the run is damaged.
        TrustError: The run has a model of one's own, and nobody has vouched for it.
        WriteError: The result could not be written.
    """
    if options.name is None or options.file is None:
        raise RunError("Name the folder of a run and a file: bpfree predict runs/NAME FILE.")
    path = Path(options.file).expanduser()
    kept = load_clicks_run(find_clicks_run(Path(options.name).expanduser()), trust=options.trust)
    place = Path(options.to or f"{path.name.partition('.')[0]}-predictions.csv").expanduser()
    rows = 0
    with replacing(place) as temporary, temporary.open("wb") as file:
        for found in _predictions(kept, path):
            found.write_csv(file, include_header=not rows)
            rows += len(found)
        if not rows:
            raise DataError(f"{path} has no rows.")
    if console is not None:
        console.print(f"predictions: {place} ({rows:,} rows)", soft_wrap=True)
    return place


def _predictions(kept: KeptClicks, path: Path) -> Iterator[pl.DataFrame]:
    """Yield identifiers, or the numbers of the rows, and probabilities, piece by piece."""
    model, rows = kept.model.to(device()).eval(), 0
    for beside, ids in kept.encoder.rows(path):
        columns: dict[str, Any] = dict(beside) or {ROW: range(rows + 1, rows + 1 + len(ids))}
        rows += len(ids)
        yield pl.DataFrame({**columns, PROBABILITY: _probabilities(model, ids).numpy()})


@torch.no_grad()
def _probabilities(model: nn.Module, ids: Tensor) -> Tensor:
    return torch.cat([model(part.to(device())).sigmoid().cpu() for part in ids.split(_ROWS)])
