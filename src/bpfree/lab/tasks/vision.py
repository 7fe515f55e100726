"""Image classification by any learning rule, with an ordinary training step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

import bpfree
from bpfree.lab.settings import RunSettings

# The part of a run that is done, 0 to 1 -> the factor of the learning rate.
_COURSES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}


class Classification(LightningModule):
    """A model that learns classes from its cross-entropy.

    Nothing in it depends on the rule: optimization is automatic, and the loss is the model's. The attachment is a
    submodule, so checkpoints hold its state. They hold the random state too, so that a resumed run continues as
    if it had not been interrupted.

    Args:
        model: Maps images to ``(N, classes)`` logits.
        run: The rule, its optimizer, where feedback enters, and the seed of the feedback.
        classes: The number of classes.
    """

    def __init__(self, model: nn.Module, run: RunSettings, *, classes: int) -> None:
        super().__init__()
        self.settings = run.rule
        self.model = model
        self.attachment = bpfree.attach(model, run.rule.rule, taps=run.taps, error_at=run.error_at, seed=run.seed)
        measures = {"loss": MeanMetric(nan_strategy="disable"), "accuracy": _accuracy(classes)}
        self.train_measures = MetricCollection(measures)
        self.eval_measures = self.train_measures.clone()
        self._random_state: dict[str, Any] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, classes)`` of images ``(N, channels, height, width)``."""
        return self.model(x)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The loss of one batch; Lightning calls ``backward()`` on it."""
        x, y = batch
        self.attachment.targets(y)
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        _update(self.train_measures, loss.detach(), logits.detach(), y)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Measure one batch."""
        x, y = batch
        logits = self(x)
        _update(self.eval_measures, F.cross_entropy(logits, y), logits, y)

    def measured(self) -> dict[str, float]:
        """Loss and accuracy (per cent) since the last call, on both sets; starts both anew."""
        values: dict[str, float] = {}
        for part, measures in (("train", self.train_measures), ("eval", self.eval_measures)):
            result = measures.compute()
            values[f"{part}_loss"] = float(result["loss"])
            values[f"{part}_accuracy"] = 100 * float(result["accuracy"])
            measures.reset()
        return values

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The rule's optimizer over the model's weights, and its learning rate's course over the run's steps."""
        optimizer = self.optimizer()
        steps = int(self.trainer.estimated_stepping_batches)
        course = _COURSES[self.settings.schedule]
        scheduler = LambdaLR(optimizer, lambda step: course(min(step / steps, 1.0)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer(self) -> torch.optim.Optimizer:
        """The rule's optimizer alone."""
        settings = self.settings
        # Fused: one pass over the weights in place of ten, which on a CPU is a third of a small network's step.
        options = {"lr": settings.lr, "weight_decay": settings.weight_decay, "fused": True}
        if settings.optimizer == "SGD":
            return torch.optim.SGD(self.model.parameters(), momentum=settings.momentum, **options)
        kind = torch.optim.AdamW if settings.optimizer == "AdamW" else torch.optim.Adam
        return kind(self.model.parameters(), **options)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep torch's random state: dropout draws from it."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        checkpoint["random_state"] = {"cpu": torch.get_rng_state(), "cuda": cuda}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the random state; it is set when training begins, after whatever is drawn until then."""
        self._random_state = checkpoint["random_state"]

    def on_train_epoch_start(self) -> None:
        """Set the random state of the checkpoint that training continues from."""
        if self._random_state is not None:
            torch.set_rng_state(self._random_state["cpu"].cpu())
            if self._random_state["cuda"]:
                torch.cuda.set_rng_state_all([state.cpu() for state in self._random_state["cuda"]])
            self._random_state = None


def _accuracy(classes: int) -> MulticlassAccuracy:
    # Validation looks at every batch's values again; labels are checked once, when the data is read.
    return MulticlassAccuracy(classes, average="micro", validate_args=False)


def _update(measures: MetricCollection, loss: Tensor, logits: Tensor, y: Tensor) -> None:
    measures["loss"].update(loss, weight=len(y))
    measures["accuracy"].update(logits, y)
