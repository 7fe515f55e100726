"""Tell the terminal what Lightning does: apart from it, because importing Lightning takes seconds."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from bpfree.lab.display.terminal import Display


class ShowProgress(ProgressBar):
    """Tells a :class:`Display` what Lightning does."""

    def __init__(self, display: Display) -> None:
        super().__init__()
        self._display = display
        self._resumed = False

    def disable(self) -> None:
        """Show nothing, which Lightning asks of all processes but the first; their display has no console anyway."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when training begins, anew or from a checkpoint; after one within an epoch, no epoch start follows."""
        self._resumed = trainer.current_epoch > 0
        if trainer.fit_loop.restarted_mid_epoch:
            steps = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            self._display.epoch_begins(trainer.current_epoch, resumed=True, steps=steps)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Pass the event on."""
        self._display.epoch_begins(trainer.current_epoch, resumed=self._resumed)
        self._resumed = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Pass the event on, with the number of targets: images, or tokens. A part of a run on a graph is one batch."""
        self._display.step(batch[1].numel() if isinstance(batch, tuple | list) else 0)
