"""In how many directions feedback moves the vectors of identifiers: Deep & Cross on MovieLens-100K."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from bpfree.lab.data.clicks import Clicks
from bpfree.lab.running.runs import Places, learner, run
from bpfree.lab.tables.work import Training, works

TABLE = "embedding.weight"


def measured(rule: str, lr: float, window: int, seed: int, data_dir: str) -> dict[str, float]:
    """Train as ``launay2020-table2`` does at its scale ``movielens``; measure how the vectors have moved."""
    settings: dict[str, Any] = {
        "data": "movielens",
        "clicks": {"measured_on": "test"},
        "model": {"class_path": "DeepCross", "init_args": {"hidden": [256, 256], "dropout": 0.3}},
        "rule": rule,
        "window": window,
        "optimizer": "Adam",
        "schedule": "constant",
        "lr": lr,
        "batch_size": 256,
        "epochs": 15,
        "patience": 3,
        "restored": "best",
        "threads": 1,
    }
    work = works(rule, settings, seed + 1, data_dir)[seed]
    assert isinstance(work, Training)
    clicks = work.data(data_dir)
    assert isinstance(clicks, Clicks)
    with TemporaryDirectory() as folder:
        record = run(work.settings, clicks, Path(folder), keep_checkpoint=True)
        before = learner(work.settings, clicks).model.get_parameter(TABLE).detach().clone()
        place = Places.of(work.settings, clicks, Path(folder)).checkpoint
        after = torch.load(place, weights_only=True)["state_dict"][f"model.{TABLE}"]
    return {"auc": record["auc"], "one_direction": one_direction(after - before, clicks.shape)}


def one_direction(moved: Tensor, shape: tuple[int, ...]) -> float:
    """Return the share of all movement, squared, that lies along one direction for each field.

    Args:
        moved: What has been added to each identifier's vector, ``(identifiers, width)``, field after field.
        shape: The number of identifiers of each field.
    """
    squares = [torch.linalg.svdvals(of_field.double()).square() for of_field in moved.split(list(shape))]
    return float(sum(of_field[0] for of_field in squares) / sum(of_field.sum() for of_field in squares))
