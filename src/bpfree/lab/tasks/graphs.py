"""The classes of a graph's nodes by any learning rule, from the few that are known."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from bpfree.lab.data.graphs import Graph
from bpfree.lab.errors import RunError, SettingsError
from bpfree.lab.models.graphs.layers import SplineConv
from bpfree.lab.settings import RunSettings
from bpfree.lab.tasks import PUBLISHED_ALIGNMENT
from bpfree.lab.tasks.feed import Feed
from bpfree.lab.tasks.neighbors import Parts
from bpfree.lab.tasks.pictures import embedding_of_nodes
from bpfree.lab.tasks.published import alignment
from bpfree.lab.tasks.source import One
from bpfree.lab.tasks.task import Task
from bpfree.lab.tasks.whole_graph import Whole, WholeGraph
from bpfree.lab.time_and_memory import clock
from bpfree.rules.direct import IGNORED


class NodeClassification(WholeGraph):
    """A model that learns classes from their negative log-likelihood at the nodes that are known.

    Every step on the whole graph is followed by an evaluation: published tables show the accuracy on the test nodes at
    the step that was best on the validation nodes. Where steps are drawn, ``data.settings.neighbors``, every part of
    the run is.

    Args:
        model: Maps features ``(n, features)``, sparse, and edges ``(2, m)`` to logarithms of probabilities
            ``(n, classes)``.
        run: The rule, its optimizer, where feedback enters, and the seed of the feedback and of the nodes' split.
        data: The graph.

    Raises:
        SettingsError: The model needs the whole graph, and is to learn from parts of it.
    """

    best: Tensor
    _y: Tensor
    _validation: Tensor
    _test: Tensor

    def __init__(self, model: nn.Module, run: RunSettings, data: Graph) -> None:
        super().__init__(model, run)
        nodes = data.nodes(run.seed)
        for name, part in (("y", data.y), ("validation", nodes.validation), ("test", nodes.test)):
            self.register_buffer(f"_{name}", part, persistent=False)
        self._checked, self.seed, self._aligned = False, run.seed, run.alignment != "never"
        if data.settings.neighbors and any(isinstance(layer, SplineConv) for layer in model.modules()):
            raise SettingsError(
                "--graph.neighbors: spline convolutions measure nodes by their edges in the whole graph, which a part "
                "of it does not show; leave the option out, or take another network."
            )
        self._last = torch.empty(0)
        self._found: list[Tensor] = []  # of each step, how many of the known nodes, and of how many
        # In a buffer, which checkpoints hold: how many validation and test nodes were right, and the step.
        self.register_buffer("best", torch.tensor([-1, 0, 0]))

    @classmethod
    def feed(cls, settings: RunSettings, data: Graph, task: Task) -> Feed:
        """Return the graph with the known classes, or parts of it, and, for alignment, the graph with all classes."""
        train = data.nodes(settings.seed).train
        whole = (data.x, data.edges), data.y
        if data.settings.neighbors:
            parts = Parts(data, train, settings.batch_size)
            return Feed(One(parts), None, lambda samples: next(parts.steps(1)), lambda: whole)
        known = torch.full_like(data.y, IGNORED)
        known[train] = data.y[train]
        batch = (data.x, data.edges), known
        return Feed(One(Whole(batch)), None, lambda samples: batch, lambda: whole)

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Return the mean negative logarithm of the probabilities ``(n, classes)`` of the known classes ``(n,)``.

        Raises:
            RunError: The model gives something else.
        """
        if not self._checked:
            self._check(output)
            self._checked = True
        return F.nll_loss(output, y, ignore_index=IGNORED)

    def _check(self, output: Tensor) -> None:
        if output.dim() != 2 or not torch.allclose(output.exp().sum(1), output.new_ones(()), atol=1e-3):
            raise RunError(
                f"the model's output, of shape {tuple(output.shape)}, holds no logarithms of probabilities of each "
                "node: end it in torch.log_softmax(x, dim=1)."
            )

    def learned(self, loss: Tensor, output: Tensor, y: Tensor) -> None:
        """Keep a step's loss, and count how many of the known nodes, whose classes are ``y``, were right."""
        super().learned(loss, output, y)
        self._found.append(torch.stack([(output.argmax(1) == y).sum(), (y != IGNORED).sum()]))

    def evaluate(self, x: tuple[Tensor, Tensor]) -> None:
        """Measure all nodes, and remember the best step."""
        began = clock(self.device)
        self._last = self.evaluated(x)
        right = self._last.argmax(1) == self._y
        validation = int(right[self._validation].sum())
        if validation > int(self.best[0]):
            self.best[:] = torch.tensor([validation, int(right[self._test].sum()), self.trainer.global_step])
        self.aside += clock(self.device) - began

    def measured(self) -> dict[str, float]:
        """Return the measures of training since the last call, and the losses and accuracies of the model now."""
        hits, known = torch.stack(self._found).sum(0).tolist()
        found = {"train_loss": self.train_loss(), "train_accuracy": 100 * hits / known}
        self._found.clear()
        right = self._last.argmax(1) == self._y
        for name, part in (("validation", self._validation), ("eval", self._test)):
            found[f"{name}_loss"] = float(F.nll_loss(self._last[part], self._y[part]))
            found[f"{name}_accuracy"] = 100 * int(right[part].sum()) / len(part)
        return found

    def pictures(self, splits: Graph) -> dict[str, Any]:
        """Return a t-SNE of the last hidden layer, and the separation of the classes there."""
        x = move_data_to_device((splits.x, splits.edges), self.device)
        return embedding_of_nodes(self.attachment, functools.partial(self.model, *x), splits.y, self.seed)

    def numbers(self, feed: Feed) -> dict[str, float | None]:
        """Return accuracy at the best step, and, where alignment is measured at all, also as it was published."""
        validation, test, step = self.best.tolist()
        return {
            "accuracy_at_best_validation": 100 * test / len(self._test),
            "best_validation_accuracy": 100 * validation / len(self._validation),
            "best_validation_step": step,
            **(alignment(self, feed.aligned()) if self._aligned else dict.fromkeys(PUBLISHED_ALIGNMENT)),
        }
