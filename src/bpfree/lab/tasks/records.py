"""The records of every epoch: losses, the task's metric, seconds and alignment."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer

import bpfree
from bpfree.errors import TapSelectionError
from bpfree.lab.errors import RunError
from bpfree.lab.settings import Times
from bpfree.lab.tasks import PUBLISHED_COSINE
from bpfree.lab.tasks.learner import Learner
from bpfree.lab.time_and_memory import clock


class TrainingSeconds(Callback):
    """Adds up the time of an epoch's training steps: forward, backward and optimizer, and nothing else.

    It stands first among the callbacks, so that others' work at the end of a step is not counted.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self._start = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin at zero."""
        self.total = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start the clock, the device being idle."""
        pl_module.aside = 0.0
        self._start = clock(pl_module.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop the clock when the device has finished."""
        self.total += clock(pl_module.device) - self._start - pl_module.aside

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds so far, for a checkpoint within an epoch."""
        return {"total": self.total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the seconds from a checkpoint."""
        self.total = state_dict["total"]


class EpochRecords(Callback):
    """Makes one dictionary per epoch, in the form that reports read; they are kept in checkpoints.

    Args:
        aligned: Gives the batch that alignment is measured on.
        seconds: The clock of the training steps.
        announce: Called with every new record.
        alignment: The epochs after which alignment is measured.
    """

    def __init__(
        self,
        aligned: Callable[[], Any],
        seconds: TrainingSeconds,
        announce: Callable[[dict[str, Any]], None],
        alignment: Times = "every",
    ) -> None:
        self.epochs: list[dict[str, Any]] = []
        self._aligned, self._times = aligned, alignment
        self._seconds, self._announce = seconds, announce
        self._began, self._before = time.perf_counter(), 0.0

    @property
    def duration(self) -> float:
        """Seconds since the run began, those of the processes among them whose checkpoint was continued."""
        return self._before + time.perf_counter() - self._began

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write down the epoch; evaluation has run by now.

        Raises:
            RunError: A loss is not finite: the run has diverged.
        """
        measured = pl_module.measured()
        for name, of in (("train_loss", "training"), ("eval_loss", "evaluation")):
            if not math.isfinite(measured[name]):
                raise RunError(
                    f"the {of} loss is {measured[name]} by step {trainer.global_step}. Lower the learning rate, "
                    "--settings.LABEL.lr."
                )
        pl_module.epoch_ended(measured)
        record: dict[str, Any] = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **measured}
        record["seconds"] = self._seconds.total
        last = trainer.current_epoch + 1 == trainer.max_epochs
        wanted = self._times == "every" or (self._times == "last" and last)
        record["alignment"] = self._alignment(pl_module, last) if wanted else []
        record |= pl_module.sample()
        aligned = {f"alignment/{tap['name']}": tap["cosine_mean"] for tap in record["alignment"]}
        pl_module.log_dict(measured | {"seconds": self._seconds.total} | aligned, batch_size=1)
        self.epochs.append(record)
        self._announce(record)

    def _alignment(self, task: Learner, last: bool) -> list[dict[str, Any]]:
        if not task.attachment.taps:
            return []  # a model without modules for its non-linearities: there is no place to compare at
        batch = move_data_to_device(self._aligned(), task.device)
        training = task.model.training
        task.model.eval()  # as in evaluation: no dropout
        try:
            closure = partial(task.batch_loss, batch)
            report = bpfree.alignment(
                task.attachment, closure, jacobian=task.measures_jacobian, layers=task.aligned_layers
            )
            published = task.published(batch) if last else {}
            return [asdict(tap) | {PUBLISHED_COSINE: published.get(tap.name)} for tap in report.taps]
        except TapSelectionError:
            return []  # a rule with no backward pass sends no signals
        finally:
            task.model.train(training)

    def state_dict(self) -> dict[str, Any]:
        """Return the records for the checkpoint."""
        return {"epochs": self.epochs, "duration": self.duration}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the records from a checkpoint."""
        self.epochs = state_dict["epochs"]
        self._before = state_dict["duration"]
