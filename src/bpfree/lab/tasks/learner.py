"""The base of all tasks: a model that learns by any rule, with an ordinary training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerConfig, OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torchmetrics import MeanMetric, Metric, MetricCollection

import bpfree
from bpfree.lab.errors import SettingsError
from bpfree.lab.process import replicas
from bpfree.lab.settings import RunSettings
from bpfree.lab.tasks.feed import Feed, sampled
from bpfree.lab.tasks.optimization import (
    VALIDATION_PLATEAU,
    MeanGradients,
    clip_gradients,
    course,
    kolen_pollack_pairs,
    make_optimizer,
    make_plateau,
    micro_batches,
)
from bpfree.lab.tasks.task import Task
from bpfree.taps import select_taps


class Learner(LightningModule):
    """A model that learns a task.

    Nothing in it depends on the rule: a step is ``loss.backward()`` of the task's loss, and ``optimizer.step()``. The
    attachment is a submodule, so checkpoints hold its state. They hold the random state too, so that a resumed run
    continues as if it had not been interrupted.

    One batch of the feed is one step of the optimizer. Where a run accumulates, the batch is cut up here, in
    :meth:`gradients`: so steps, their order and checkpoints know nothing of it.

    A task overrides :meth:`loss`, and :meth:`update` and :meth:`values` to measure more than the mean loss.

    Args:
        model: The model to train.
        run: The rule, its optimizer, the taps, and the seed of the feedback.
        measures: The measures beside the mean loss, by name.
    """

    measures_jacobian: bool | None = None
    """Whether alignment also compares B with the mean Jacobian, see :func:`bpfree.alignment`."""
    aside = 0.0
    """Seconds in the last training steps that were spent on something else."""

    def __init__(self, model: nn.Module, run: RunSettings, measures: dict[str, Metric] | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.settings = run.rule
        self._clip, self._parts = run.clip, run.accumulate
        self._bf16 = run.precision == "bf16"
        self.model = model
        self.attachment = bpfree.attach(
            model,
            run.rule.rule,
            taps=run.taps,
            # Where the settings say, also behind a final softmax: what is published may do just that.
            error_at="" if run.error_at is None else run.error_at,
            window=run.rule.window,
            alternate=run.rule.alternate,
            alternate_order=run.rule.alternate_order,
            within=run.rule.within,
            seed=run.seed,
        )
        self.train_measures = MetricCollection({"loss": MeanMetric(nan_strategy="disable"), **(measures or {})})
        self.eval_measures = self.train_measures.clone()
        self._random_state: dict[str, Any] | None = None
        self._plateau: ReduceLROnPlateau | None = None
        self._plateau_state: dict[str, Any] = {}

    @property
    def aligned_layers(self) -> Sequence[str]:
        """Modules between taps behind which alignment is measured too, as the model names them; none under windows.

        Raises:
            SettingsError: The model has no such module.
        """
        found, modules = tuple(getattr(self.model, "aligned_layers", ())), dict(self.model.named_modules())
        if unknown := [name for name in found if name not in modules]:
            raise SettingsError(f"aligned_layers of {type(self.model).__name__} names {', '.join(unknown)}: no module.")
        return found if self.settings.window == 1 else ()

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Return the loss of a batch, one number."""
        raise NotImplementedError

    def update(self, measures: MetricCollection, output: Tensor, y: Tensor) -> None:
        """Measure a batch; the loss is measured already."""

    def values(self, measures: MetricCollection) -> dict[str, float]:
        """Return the measured values by name: the loss, and the task's metric."""
        raise NotImplementedError

    @classmethod
    def feed(cls, settings: RunSettings, data: Any, task: Task) -> Feed:
        """Return the batches of a run, each ``(x, y)``; the task says what ``data`` is, here images or text."""
        return sampled(settings, data, task)

    def pictures(self, splits: Any) -> dict[str, Any]:
        """Return pictures of the trained network's inside for reports, by name."""
        return {}

    def published(self, batch: tuple[Any, Tensor]) -> dict[str, float]:
        """Return alignment as a paper's code measures it, by tap; measured after the last epoch."""
        return {}

    def sample(self) -> dict[str, Any]:
        """Return something that the model makes, for the record of an evaluation; nothing by default."""
        return {}

    def numbers(self, feed: Feed) -> dict[str, float | None]:
        """Return further numbers at the end of a run, by name; the task names them in its ``measures``."""
        return {}

    def forward(self, x: Any) -> Tensor:
        """Return the model's output."""
        return self.model(x)

    def batch_loss(self, batch: tuple[Any, Tensor]) -> Tensor:
        """Return the loss of a batch, and tell the rule the batch's targets."""
        return self._loss_and_output(batch)[0]

    def _loss_and_output(self, batch: tuple[Any, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = batch
        self.attachment.targets(y)
        with self.autocast():
            output = self(x)
            return self.loss(output, y), output

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of forward passes: that of bfloat16, or one that changes nothing."""
        return torch.autocast(self.device.type, torch.bfloat16) if self._bf16 else nullcontext()

    def training_step(self, batch: Any) -> None:
        """Take one step on a batch ``(x, y)``."""
        self.step(batch, self.optimizers(), self.lr_schedulers())

    def step(self, batch: tuple[Any, Tensor], optimizer: Any, schedule: Any) -> None:
        """Take one step on a batch ``(x, y)``; ``schedule`` is None where the learning rate does not follow steps."""
        optimizer.zero_grad()
        self.gradients(batch, self.learned)
        optimizer.step()
        if schedule is not None:
            schedule.step()

    def gradients(
        self, batch: tuple[Any, Tensor], learned: Callable[[Tensor, Tensor, Any], None] = lambda *_: None
    ) -> None:
        """Give the weights, which have none, the gradients of a batch: averaged over its micro-batches, and clipped.

        Args:
            batch: ``(x, y)``.
            learned: Called before each backward pass with its loss, the model's output and the targets.
        """
        mean = MeanGradients([*self.model.parameters(), *self.attachment.parameters()])
        for part in micro_batches(batch, self._parts):
            loss, output = self._loss_and_output(part)
            learned(loss.detach(), output.detach(), part[1])
            del output  # logits are large, and the backward pass may not need them
            if self._parts > 1:
                mean.before(len(part[1]))
            self._backward(loss)
        mean.finish()
        if self._clip is not None:
            clip_gradients(self.attachment, self._clip)

    def _backward(self, loss: Tensor) -> None:
        if self._trainer is not None and replicas.count() > 1:
            self.manual_backward(loss)  # tells DDP that gradients come
        else:
            loss.backward()

    def learned(self, loss: Tensor, output: Tensor, y: Any) -> None:
        """Measure what a training step has computed."""
        self._measure(self.train_measures, loss, output, y)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Measure one batch."""
        x, y = batch
        with self.autocast():
            output = self(x)
            loss = self.loss(output, y)
        self._measure(self.eval_measures, loss, output, y)

    def _measure(self, measures: MetricCollection, loss: Tensor, output: Tensor, y: Tensor) -> None:
        # Once for every sample: this metric forgets weights where it keeps NaN, and batches may differ in size.
        measures["loss"].update(loss.expand(len(y)))
        self.update(measures, output, y)

    def measured(self) -> dict[str, float]:
        """Return the values measured since the last call, as ``train_<name>`` and ``eval_<name>``, and start anew."""
        found: dict[str, float] = {}
        for part, measures in (("train", self.train_measures), ("eval", self.eval_measures)):
            found |= {f"{part}_{name}": value for name, value in self.values(measures).items()}
            measures.reset()
        return found

    def epoch_ended(self, measured: dict[str, float]) -> None:
        """Let the learning rate fall if the loss that it follows does not; ``measured`` holds the losses."""
        if self._plateau is not None:
            self._plateau.step(measured["eval_loss" if self.settings.schedule == VALIDATION_PLATEAU else "train_loss"])

    def configure_optimizers(self) -> OptimizerConfig | OptimizerLRSchedulerConfig:
        """Return the rule's optimizer over the weights of model and rule, and the schedule of its learning rate."""
        optimizer = self.optimizer()
        # Not Lightning's business, whose checkpoints at the end of an epoch come before its schedulers' steps.
        self._plateau = make_plateau(self.settings, optimizer)
        if self._plateau is not None:
            if self._plateau_state:
                self._plateau.load_state_dict(self._plateau_state)
            return {"optimizer": optimizer}
        factor = course(self.settings, self.all_steps(), int(self.trainer.max_epochs or 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    def all_steps(self) -> int:
        """Return the number of steps of the whole run."""
        return int(self.trainer.estimated_stepping_batches)

    def optimizer(self) -> Optimizer:
        """Return the rule's optimizer alone."""
        return make_optimizer(self.settings, self._weights())

    def _weights(self) -> list[Any]:
        """Return the weights that learn; weights without decay are in a group of their own."""
        # Some rules have weights of their own, whose gradients they set; they take the same steps as the model's.
        weights: list[nn.Parameter] = [*self.model.parameters(), *self.attachment.parameters()]
        if self.settings.decayed is None:
            return weights
        chosen = select_taps(self.model, self.settings.decayed)  # named as taps are
        decayed = {id(weight) for module in chosen.values() for weight in module.parameters()}
        decayed |= {id(B) for W, B in kolen_pollack_pairs(self.attachment) if id(W) in decayed}
        others = [weight for weight in weights if id(weight) not in decayed]
        return [
            {"params": [weight for weight in weights if id(weight) in decayed]},
            {"params": others, "weight_decay": 0.0},
        ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep torch's random state, from which dropout draws, what is measured so far, and how a plateau stands."""
        if self._plateau is not None:
            checkpoint["plateau"] = self._plateau.state_dict()
        self.train_measures.persistent(mode=True)
        checkpoint["train_measures"] = self.train_measures.state_dict()
        self.train_measures.persistent(mode=False)  # as part of the module, older checkpoints would lack them
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        checkpoint["random_state"] = {"cpu": torch.get_rng_state(), "cuda": cuda}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them; the random state is set when training begins, after whatever is drawn until then."""
        self._random_state = checkpoint["random_state"]
        self._plateau_state = checkpoint.get("plateau", {})
        self.train_measures.load_state_dict(checkpoint.get("train_measures", {}), strict=False)

    def on_train_start(self) -> None:
        """Set the random state of the checkpoint that training continues from."""
        if self._random_state is not None:
            torch.set_rng_state(self._random_state["cpu"].cpu())
            if self._random_state["cuda"]:
                torch.cuda.set_rng_state_all([state.cpu() for state in self._random_state["cuda"]])
            self._random_state = None
