"""The lab's training steps on a log of clicks: the nets, their settings, and what reads their batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from bpfree.lab.data.batches import batches
from bpfree.lab.data.clicks import Clicks, ClickSettings, ShuffledBlocks
from bpfree.lab.options.training import TrainOptions
from bpfree.lab.running.runs import learner
from bpfree.lab.settings import RuleOverrides, RunSettings
from bpfree.lab.settings.model import ModelSettings
from bpfree.lab.tasks.clicks import ClickPrediction

NETS: dict[str, dict[str, Any]] = {
    "DeepFM": {"width": 10, "hidden": [400, 400, 400], "dropout": 0.5},
    "DeepCross": {"width": 16, "layers": 6, "hidden": [1024, 1024], "dropout": 0.0},
}
"""The nets of the published runs."""
BATCH = {"DeepFM": 2048, "DeepCross": 512}
SMALL: dict[str, dict[str, Any]] = {
    "DeepFM": {"width": 16, "hidden": [16, 16], "dropout": 0.2},
    "DeepCross": {"width": 16, "layers": 3, "hidden": [16, 16], "dropout": 0.2},
}
"""Those of torchfm's example script, which takes batches of 2,048 and a weight decay of 1e-6."""
SMALL_BATCH, SMALL_DECAY = 2048, 1e-6


def settings(net: str, rule: str, threads: int, **changes: Any) -> RunSettings:
    """A run of one of the nets, one pass."""
    model = ModelSettings(net, NETS.get(net, {}))
    options = {"data": "criteo", "rule": rule, "model": model, "epochs": 1, "lr": 1e-3, "alignment": "never"}
    options |= {"batch_size": BATCH.get(net, 2048), "threads": threads, "clicks": ClickSettings(measured_on="test")}
    return TrainOptions(**(options | changes)).run(rule, 0, details=False)


def alike(net: str, arguments: dict[str, Any], rule: str, threads: int, size: int, decay: float) -> RunSettings:
    """A run of a net with these arguments, batch size and weight decay."""
    changes = {"model": ModelSettings(net, arguments), "batch_size": size}
    return settings(net, rule, threads, **changes, settings={rule: RuleOverrides(weight_decay=decay)})


def stepping(clicks: Clicks, run_settings: RunSettings) -> tuple[ClickPrediction, Callable[[Any], None]]:
    """The lab's learner, and its training step on a batch."""
    task: Any = learner(run_settings, clicks)
    optimizer = task.optimizer()

    def step(batch: Any) -> None:
        optimizer.zero_grad()
        task.gradients(batch)
        optimizer.step()

    return task, step


def endless(clicks: Clicks, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Read batch after batch from the cache."""
    loader = batches(clicks.train, ShuffledBlocks(len(clicks.train), size, seed=0))
    return itertools.chain.from_iterable(itertools.repeat(loader))
