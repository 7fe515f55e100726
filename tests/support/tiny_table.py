"""A recipe so small that its table takes a second, and what is measured in one without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

RECIPE = """
title: Rules on tiny pictures
source: {paper: made up, table: table 1}
base:
  data: tiny
  model: {class_path: MLP, init_args: {hidden: [16, 16], dropout: 0.2}}
  rule: {class_path: DFA}
  optimizer: SGD
  lr: 0.05
  batch_size: 32
  epochs: 3
columns:
  accuracy: {tolerance: 100}
  training: {metric: train_accuracy}
  cosine 1: {metric: {alignment: 1}, tolerance: 0}
  cosine 2: {metric: {alignment: "5"}}
rows:
  DFA: {}
  sum: {rule: {init_args: {reduction: sum}}, lr: 0.01}
  BP: {rule: BP, optimizer: Adam}
expected:
  DFA: {accuracy: [50, 1.5], cosine 1: 2}
  BP: {accuracy: 90}
scales:
  full: {seeds: 2}
  reduced: {seeds: 1, epochs: 1, cut: 1 of 3 epochs}
deviations: [The pictures are <made up>.]
search: {lr: [0.05, 0.2]}
"""


def write(folder: Path, text: str = RECIPE, name: str = "tiny") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def timeless(record: dict[str, Any]) -> str:
    """A record without what differs between two runs of one computation: when it was, and how long it took."""
    kept = {
        name: value
        for name, value in record.items()
        if name not in ("finished", "duration", "seconds_per_epoch", "checksum")
    }
    kept["epochs"] = [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in kept["epochs"]]
    return json.dumps(kept, sort_keys=True)


def record(label: str, seed: int, accuracy: float | None, **more: Any) -> dict[str, Any]:
    """What a run might have found, without any training."""
    taps = [{"name": name, "cosine_mean": 0.5, "n_valid": 8} for name in ("2", "5")]
    epoch = {"train_accuracy": accuracy, "eval_accuracy": accuracy, "seconds": 0.5, "alignment": taps}
    data = {"name": "tiny", "checksums": {"made up": "0"}}
    return {"label": label, "seed": seed, "accuracy": accuracy, "epochs": [epoch], "data": data} | more


def memory(width: int, layers: int = 2, seed: int = 0) -> dict[str, float]:
    """Something that is computed."""
    return {"bytes": 4.0 * width * layers, "seed": float(seed)}


def weight(width: int, layers: int) -> dict[str, float]:
    """Something that no seed changes."""
    return {"bytes": 4.0 * width * layers}


def counted(kind: str, **options: int) -> Any:
    """Numbers of several kinds, and what is none."""
    kinds: dict[str, Any] = {
        "torch": torch.tensor(1.5),
        "numpy": np.float32(1.5),
        "whole": options.get("much", 0),
        "several": torch.ones(2),
        "text": "much",
    }
    return {"bytes": kinds[kind]} if kind in kinds else kinds["torch"]


def broken(seed: int) -> dict[str, float]:
    """Something that goes wrong with one seed."""
    if seed == 1:
        raise RuntimeError("out of paper")
    return {"bytes": 1.0}
