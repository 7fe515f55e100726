"""The edges of a graph by any learning rule: the auto-encoder of Kipf and Welling 2016, without noise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from bpfree.lab.data.graphs import Graph, unlinked
from bpfree.lab.settings import RunSettings
from bpfree.lab.tasks.feed import Feed
from bpfree.lab.tasks.source import One
from bpfree.lab.tasks.task import Task
from bpfree.lab.tasks.whole_graph import Whole, WholeGraph


class LinkPrediction(WholeGraph):
    """An encoder that learns to tell edges from pairs without one, by the inner product of two nodes' codes.

    Args:
        model: Maps features ``(n, features)``, sparse, and the known edges ``(2, m)`` to codes ``(n, code)``.
        run: The rule, its optimizer, where feedback enters, and the seed of the feedback and of the edges' split.
        data: The graph.
    """

    _x: Tensor
    _train: Tensor
    _validation: Tensor
    _validation_others: Tensor
    _test: Tensor
    _test_others: Tensor

    def __init__(self, model: nn.Module, run: RunSettings, data: Graph) -> None:
        super().__init__(model, run)
        links = data.links(run.seed)
        for name, part in links._asdict().items():
            self.register_buffer(f"_{name}", part, persistent=False)
        self.register_buffer("_x", data.x, persistent=False)

    @classmethod
    def feed(cls, settings: RunSettings, data: Graph, task: Task) -> Feed:
        """Return the graph with the known edges, which are also the targets."""
        known = data.links(settings.seed).train
        batch = ((data.x, known), known)
        return Feed(One(Whole(batch)), None, lambda samples: batch, lambda: batch)

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Return the cross-entropy of edges ``(2, m)`` and as many pairs without edges, from codes ``(n, code)``."""
        return _cross_entropy(output, y, unlinked(y, len(output), y.shape[1]))

    def measured(self) -> dict[str, float]:
        """Return the measures of training since the last call, and the scores of held-out edges against other pairs."""
        found = {"train_loss": self.train_loss()}
        for name, edges, others in (
            ("validation", self._validation, self._validation_others),
            ("eval", self._test, self._test_others),
        ):
            found |= {f"{name}_{key}": value for key, value in self._scores(edges, others).items()}
        return found

    def _scores(self, edges: Tensor, others: Tensor) -> dict[str, float]:
        codes = self.evaluated((self._x, self._train))
        scores = torch.cat([_joined(codes, edges), _joined(codes, others)]).sigmoid()
        target = torch.cat([torch.ones_like(edges[0]), torch.zeros_like(others[0])])
        return {
            "loss": float(_cross_entropy(codes, edges, others)),
            "auc": float(binary_auroc(scores, target)),
            "average_precision": float(binary_average_precision(scores, target)),
        }

    def numbers(self, feed: Feed) -> dict[str, float | None]:
        """Return average precision, and how well edges for validation are told."""
        validation = self._scores(self._validation, self._validation_others)
        return {
            "average_precision": self._scores(self._test, self._test_others)["average_precision"],
            "validation_auc": validation["auc"],
            "validation_average_precision": validation["average_precision"],
        }


def _joined(codes: Tensor, pairs: Tensor) -> Tensor:
    """Return the logit of an edge between each pair ``(2, k)`` of nodes."""
    return (codes[pairs[0]] * codes[pairs[1]]).sum(1)


def _cross_entropy(codes: Tensor, edges: Tensor, others: Tensor) -> Tensor:
    return F.softplus(-_joined(codes, edges)).mean() + F.softplus(_joined(codes, others)).mean()
