"""The base of tasks on graphs: a batch is the whole graph or a part of it; steps take a few milliseconds."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from bpfree import Feedback
from bpfree.lab.models.graphs.layers import normalized
from bpfree.lab.settings import RunSettings
from bpfree.lab.tasks.learner import Learner
from bpfree.lab.tasks.source import Source


@dataclass(frozen=True)
class Whole:
    """The whole graph as the batch of every step."""

    batch: Any
    every_step = True

    @property
    def graph(self) -> tuple[Tensor, Tensor]:
        """Features and edges of all nodes."""
        return self.batch[0]

    def steps(self, n: int) -> Iterator[Any]:
        """Return the same batch ``n`` times."""
        return itertools.repeat(self.batch, n)

    def to(self, device: torch.device) -> Whole:
        """Return the same on a device."""
        return Whole(move_data_to_device(self.batch, device))


class WholeGraph(Learner):
    """A model that learns from a graph: a batch is ``((features, edges), targets)``, always the same or drawn from it.

    One step of Lightning is many steps of the run, all those up to the next evaluation: Lightning works a millisecond
    or two between its steps, which is longer than a step on a small graph.
    """

    # What a node gives depends on its neighbours' hidden features too: the mean over nodes is no Jacobian of one.
    measures_jacobian = False
    _moved: tuple[Any, Any] | None = None

    def __init__(self, model: nn.Module, run: RunSettings) -> None:
        super().__init__(model, run)
        self._part, self._all = run.length.steps or 1, run.length.total
        self._losses: list[Tensor] = []

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch on the device, moved once."""
        if self._moved is None or self._moved[0] is not batch:
            self._moved = batch, move_data_to_device(batch, device)
        return self._moved[1]

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        """Return the model's output for all nodes."""
        features, edges = x
        if self._spreads:
            self.attachment.adjacency(normalized(edges, len(features)))
        return self.model(features, edges)

    @functools.cached_property
    def _spreads(self) -> bool:
        feedback = getattr(self.attachment.rule, "feedback", None)
        return isinstance(feedback, Feedback) and feedback.spread > 0

    def training_step(self, batch: Source) -> None:
        """Take all steps of a part of the run."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        for drawn in batch.steps(self._part):
            self.step(drawn, optimizer, schedule)
            if batch.every_step:
                self.evaluate(batch.graph)
        if not batch.every_step:
            self.evaluate(batch.graph)

    def learned(self, loss: Tensor, output: Tensor, y: Any) -> None:
        """Keep a step's loss; ``y`` is what its nodes are to give."""
        self._losses.append(loss)

    def evaluate(self, x: tuple[Tensor, Tensor]) -> None:
        """Look at the model behind a step, or behind a part of the run where steps are drawn; ``x`` is the graph."""

    def train_loss(self) -> float:
        """Return the mean loss of the steps since the last call."""
        mean = float(torch.stack(self._losses).mean())
        self._losses.clear()
        return mean

    def evaluated(self, x: tuple[Tensor, Tensor]) -> Tensor:
        """Return the model's output in evaluation mode."""
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            output = self(x)
        self.model.train(training)
        return output

    def all_steps(self) -> int:
        """Return the number of steps of the whole run."""
        return self._all
