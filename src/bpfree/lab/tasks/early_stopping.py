"""Early stopping: a run ends where it does not get better, and keeps the weights of its best evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from bpfree.lab.settings import Restored
from bpfree.lab.tasks.records import EpochRecords
from bpfree.lab.tasks.task import Task


class EarlyStopping(Callback):
    """Ends training after ``patience`` evaluations in a row without a better number on validation data.

    It stands behind the records among the callbacks. What it has seen, and the best weights, are in every checkpoint: a
    run that is killed and continued ends where an undisturbed one does, with the same weights.

    Args:
        records: The evaluations.
        task: The task; :attr:`~bpfree.lab.tasks.task.Task.chosen_by` names the number.
        patience: The number of evaluations.
        restored: Whether the weights of the best evaluation are taken at the end of every run, or only of one that
            ended early.
        checkpoint: The run's checkpoint, which is written once more with the weights that were taken.
    """

    def __init__(self, records: EpochRecords, task: Task, patience: int, restored: Restored, checkpoint: Path) -> None:
        assert task.chosen_by is not None
        self._checkpoint = checkpoint
        self._records, self._name = records, task.chosen_by
        self._sign = 1 if task.metric.better == "higher" else -1
        self._patience, self._restored = patience, restored
        self._best: dict[str, Any] = {}

    @property
    def best(self) -> int:
        """The index of the best evaluation; of several, the first."""
        scores = [self._sign * epoch[self._name] for epoch in self._records.epochs]
        return scores.index(max(scores))

    @property
    def taken(self) -> int:
        """The index of the evaluation whose weights the run ends with."""
        return self.best if self._restored == "best" or self._is_over() else len(self._records.epochs) - 1

    def _is_over(self) -> bool:
        return bool(self._records.epochs) and len(self._records.epochs) - 1 - self.best >= self._patience

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """End a run at once that was killed after it had stopped."""
        trainer.should_stop = self._is_over()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Keep the weights if they are the best so far, or end the run."""
        if self.best == len(self._records.epochs) - 1:
            self._best = {name: value.detach().clone() for name, value in pl_module.model.state_dict().items()}
        trainer.should_stop = self._is_over()

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Take the weights that the run ends with."""
        if self.taken != len(self._records.epochs) - 1:
            pl_module.model.load_state_dict(self._best)
            trainer.save_checkpoint(self._checkpoint, weights_only=False)  # the optimizer and all else too

    def state_dict(self) -> dict[str, Any]:
        """Return the best weights for the checkpoint; the records are in it anyway."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them from a checkpoint."""
        self._best = state_dict["best"]
