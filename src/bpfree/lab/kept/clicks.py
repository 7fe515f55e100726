"""Runs on logs of clicks: their models can be used without the log that they were trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from bpfree.lab.data.clicks import Clicks
from bpfree.lab.kept.model import find_run, keep_model, load_model, read_settings
from bpfree.lab.settings import RunSettings

if TYPE_CHECKING:
    from bpfree.lab.data.clicks.encoder import Encoder

_ENCODER = "log"
"""The folder in a run's folder with schema, vocabularies and joined tables of its log."""


@dataclass(frozen=True)
class KeptClicks:
    """A trained click model.

    Attributes:
        model: It maps identifiers ``(N, fields)`` to logits ``(N,)``.
        encoder: From the rows of a file to identifiers.
    """

    model: nn.Module
    encoder: Encoder


def keep_clicks(settings: RunSettings, data: Clicks, folder: Path) -> None:
    """Write down, in a run's folder, what its model is built of, and what makes identifiers of rows.

    Raises:
        WriteError: A file could not be written.
    """
    from bpfree.lab.data.clicks.encoder import Encoder  # needs polars, an extra

    keep_model(settings, data, folder)
    Encoder.of(data).save(folder / _ENCODER)


def load_clicks_run(folder: Path, *, trust: bool = False) -> KeptClicks:
    """Build the model of a run, finished or interrupted, with the weights of its last whole checkpoint.

    Args:
        folder: The run's folder, see :func:`find_clicks_run`.
        trust: True if a model of one's own may be imported, wherever the folder lies.

    Raises:
        TrustError: The model is of one's own, and nobody has vouched for the file that names it.
        RunError: There is no checkpoint.
        DamageError: A file is not as it was written, or no checkpoint is whole.
        SettingsError: The model cannot be built.
    """
    from bpfree.lab.data.clicks.encoder import Encoder

    model = load_model(folder, read_settings(folder, trust=trust))
    return KeptClicks(model, Encoder.load(folder / _ENCODER))


def find_clicks_run(place: Path) -> Path:
    """Return the folder of a run on clicks, see :func:`bpfree.lab.kept.model.find_run`."""
    return find_run(place, _ENCODER, "clicks")
