"""Tell the terminal what Lightning does: apart from it, because importing Lightning takes seconds."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from bpfree.lab.terminal import Display


class ShowProgress(ProgressBar):
    """Tells a :class:`Display` what Lightning does."""

    def __init__(self, display: Display) -> None:
        super().__init__()
        self._display = display
        self._resumed = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when training begins, anew or from a checkpoint."""
        self._resumed = trainer.current_epoch > 0

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Pass the event on."""
        self._display.epoch_begins(trainer.current_epoch, resumed=self._resumed)
        self._resumed = False

    def on_train_batch_end(self, *_: Any) -> None:
        """Pass the event on."""
        self._display.step()
