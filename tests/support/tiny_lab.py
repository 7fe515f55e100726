"""A data set and settings so small that a run takes a fraction of a second."""

from __future__ import annotations

from typing import Any

import torch

from bpfree.lab.data import Images, Normalization, Splits
from bpfree.lab.settings import RunSettings, rule_settings
from bpfree.lab.settings.model import ModelSettings


def splits() -> Splits:
    """240 and 60 pictures of 8 x 8 pixels: a bright row on noise, whose place is the class."""
    generator = torch.Generator().manual_seed(7)
    y = torch.arange(300) % 4
    x = 0.5 * torch.randn(300, 1, 8, 8, generator=generator)
    x[torch.arange(300), 0, 2 * y] += 1.0
    train, test = Images(x[:240], y[:240]), Images(x[240:], y[240:])
    normalization = Normalization((0.0,), (1.0,))
    return Splits("tiny", train, test, classes=4, normalization=normalization, checksums={"made up": "0"})


def settings(label: str = "DFA", **changes: Any) -> RunSettings:
    """Four epochs of eight steps; dropout makes the random state matter."""
    model = ModelSettings("MLP", {"hidden": [16, 16], "dropout": 0.2}).describe()
    given: dict[str, Any] = {
        "label": label,
        "seed": 0,
        "rule": rule_settings(label),
        "model": model,
        "epochs": 4,
        "batch_size": 32,
    }
    return RunSettings(**(given | {"threads": 1} | changes))
