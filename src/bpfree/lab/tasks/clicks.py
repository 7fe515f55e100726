"""Clicks by any learning rule: the probability of one on a row of a log."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

from bpfree.errors import TapSelectionError
from bpfree.lab.data.batches import InOrder, batches
from bpfree.lab.data.clicks import Clicks, Rows, ShuffledBlocks
from bpfree.lab.errors import DataError, RunError, SettingsError
from bpfree.lab.models.clicks import FM
from bpfree.lab.process import replicas
from bpfree.lab.settings import RunSettings
from bpfree.lab.tasks import CLICKS
from bpfree.lab.tasks.feed import Feed
from bpfree.lab.tasks.learner import Learner
from bpfree.lab.tasks.prediction_curves import calibration_curve, roc_curve
from bpfree.lab.tasks.task import Task

_BINS = 15  # of the calibration error: equal parts of the probabilities, as in Guo et al. 2017


class ClickPrediction(Learner):
    """A model that learns the probability of a click from the binary cross-entropy.

    After each part of a run all rows for validation and all rows for the test are evaluated. AUC is exact: that of all
    pairs of rows, not of bins.

    Args:
        model: Maps identifiers ``(N, fields)`` to logits ``(N,)``.
        run: The rule, its optimizer, where feedback enters, and the seed of the feedback.
        data: The rows.
    """

    def __init__(self, model: nn.Module, run: RunSettings, data: Clicks) -> None:
        try:
            super().__init__(model, run)
        except TapSelectionError as error:
            if not isinstance(model, FM):
                raise
            raise SettingsError(
                "FM has no layer behind another one: all of it learns exactly. Take --rule BP."
            ) from error
        _check(data)
        self._rows = {"validation": data.validation, "eval": data.evaluation}

    @classmethod
    def feed(cls, settings: RunSettings, data: Clicks, task: Task) -> Feed:
        """Return the batches of a run, in an order that mixes the rows of some blocks at a time."""
        size = settings.batch_size // settings.processes
        order = ShuffledBlocks(
            len(data.train), size, settings.seed, settings.length.steps,
            rank=replicas.number(), processes=settings.processes,
        )  # fmt: skip
        aligned = min(task.alignment_samples, len(data.evaluation))
        return Feed(
            batches(data.train, order),
            None,
            lambda samples: data.train.batch(torch.arange(min(samples, len(data.train)))),
            lambda: data.evaluation.batch(torch.arange(aligned)),
        )

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Return the mean binary cross-entropy of logits ``(N,)`` and clicks ``(N,)``, 0 or 1.

        Raises:
            RunError: The model gives something else.
        """
        if output.shape != y.shape:
            raise RunError(
                f"the model gives {tuple(output.shape)} for {len(y)} rows; a click model gives one logit a row: "
                f"{tuple(y.shape)}."
            )
        return F.binary_cross_entropy_with_logits(output, y)

    def values(self, measures: MetricCollection) -> dict[str, float]:
        """Return the mean loss."""
        return {"loss": float(measures["loss"].compute())}

    def measured(self) -> dict[str, float]:
        """Return the loss of training since the last call, and the scores of the rows that are never trained on."""
        found = {"train_loss": self.values(self.train_measures)["loss"]}
        self.train_measures.reset()
        for part, predicted in self._predicted().items():
            found |= {f"{part}_{name}": value for name, value in scores(*predicted).items()}
        return found

    def _predicted(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the predictions of the rows for validation, and of those that the run is measured on."""
        validation = self.predictions(self._rows["validation"])
        same = self._rows["eval"] is self._rows["validation"]
        return {"validation": validation, "eval": validation if same else self.predictions(self._rows["eval"])}

    @functools.cached_property
    def _at_the_end(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The predictions of the model that the run ends with."""
        return self._predicted()

    def predictions(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the logits of rows in evaluation mode, and their clicks, float32 ``(n,)`` each, on the CPU.

        Several processes deal the rows out: the order is then another.
        """
        training = self.model.training
        self.model.eval()
        logits, clicks = [torch.empty(0)], [torch.empty(0)]
        with torch.no_grad():
            for index in itertools.islice(
                InOrder(len(rows), CLICKS.evaluation_batch), replicas.number(), None, replicas.count()
            ):
                x, y = rows.batch(index)
                with self.autocast():
                    logits.append(self(x.to(self.device)).float().cpu())
                clicks.append(y)
        self.model.train(training)
        return replicas.gathered(torch.cat(logits)), replicas.gathered(torch.cat(clicks))

    def pictures(self, splits: Clicks) -> dict[str, Any]:
        """Return the calibration and the ROC curve on the rows that the run is measured on."""
        logits, clicks = self._at_the_end["eval"]
        probabilities = logits.double().sigmoid()
        return {
            "calibration_curve": calibration_curve(probabilities, clicks),
            "roc": roc_curve(probabilities, clicks),
        }

    def numbers(self, feed: Feed) -> dict[str, float | None]:
        """Return the scores of the model that the run ends with."""
        test, validation = (scores(*self._at_the_end[part]) for part in ("eval", "validation"))
        return {
            "log_loss": test["loss"],
            "calibration": test["calibration"],
            "calibration_error": test["calibration_error"],
            "validation_auc": validation["auc"],
            "validation_log_loss": validation["loss"],
        }


def _check(data: Clicks) -> None:
    """Refuse parts of a log that nothing can be judged by.

    Raises:
        DataError: Such a part has rows of one class only, or none.
    """
    for part in dict.fromkeys(("validation", data.measured_on)):
        rows, clicks = data.cache.counts[part], data.cache.clicks[part]
        if not 0 < clicks < rows:
            raise DataError(
                f"the {part} part of {data.name} has {rows:,} rows and {clicks:,} clicks: AUC compares rows with a "
                "click with rows without one. Change split or files in the schema so that it has both."
            )


def scores(logits: Tensor, clicks: Tensor) -> dict[str, float]:
    """Return what predictions are judged by, of logits ``(n,)`` and clicks ``(n,)``, 0 or 1, at least one of each.

    ``auc`` is the area under the ROC curve, ``loss`` the mean binary cross-entropy in nats. ``calibration`` is the mean
    of the probabilities over the share of clicks, 1 at best. ``calibration_error`` is the mean distance of the two over
    15 equal parts of the probabilities, weighed by their rows (Guo et al. 2017).
    """
    probabilities, targets = logits.double().sigmoid(), clicks.long()
    return {
        "loss": float(F.binary_cross_entropy_with_logits(logits.double(), clicks.double())),
        "auc": float(binary_auroc(probabilities, targets)),
        "calibration": float(probabilities.mean() / clicks.double().mean()),
        "calibration_error": float(binary_calibration_error(probabilities, targets, n_bins=_BINS, norm="l1")),
    }
