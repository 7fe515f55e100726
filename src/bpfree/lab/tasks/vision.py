"""Image classification by any learning rule."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from bpfree.lab.data import Splits
from bpfree.lab.settings import RunSettings
from bpfree.lab.tasks.alignment_launay2019 import cosines
from bpfree.lab.tasks.learner import Learner
from bpfree.lab.tasks.pictures import embedding, filters


class Classification(Learner):
    """A model that learns classes from its cross-entropy.

    Args:
        model: Maps images ``(N, channels, height, width)`` to logits ``(N, classes)``.
        run: The rule, its optimizer, where feedback enters, and the seed of the feedback.
        splits: The images.
    """

    def __init__(self, model: nn.Module, run: RunSettings, splits: Splits) -> None:
        # Validation looks at every batch's values again; labels are checked once, when the data is read.
        accuracy = MulticlassAccuracy(splits.classes, average="micro", validate_args=False)
        super().__init__(model, run, {"accuracy": accuracy})

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits ``(N, classes)`` and classes ``(N,)``."""
        return F.cross_entropy(output, y)

    def update(self, measures: MetricCollection, output: Tensor, y: Tensor) -> None:
        """Count the classes that were found."""
        measures["accuracy"].update(output, y)

    def values(self, measures: MetricCollection) -> dict[str, float]:
        """Return mean loss, and accuracy in per cent."""
        found = measures.compute()
        return {"loss": float(found["loss"]), "accuracy": 100 * float(found["accuracy"])}

    def published(self, batch: tuple[Any, Tensor]) -> dict[str, float]:
        """Return alignment as in Launay et al. 2019."""
        return cosines(self, batch)

    def pictures(self, splits: Splits) -> dict[str, Any]:
        """Return the first layer's filters, and a t-SNE of the last hidden layer."""
        points = embedding(self.attachment, splits.evaluation, self.device)
        return {**filters(self.model, splits.shape), "embedding": points}
