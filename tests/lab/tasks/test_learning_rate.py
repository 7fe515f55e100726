"""The schedule of the learning rate, and when alignment is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from bpfree.lab import runs
from bpfree.lab.runs import run
from bpfree.lab.settings import rule_settings
from support import tiny_lab


class Rates(Callback):
    """The learning rate that every step was taken with."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.epochs: list[float] = []

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.steps.append(trainer.optimizers[0].param_groups[0]["lr"])
        if trainer.is_last_batch:
            self.epochs.append(self.steps[-1])


def rates(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Rates:
    """Those of a run of eight steps an epoch, at 1e-2."""
    seen = Rates()
    trainer = runs._trainer
    monkeypatch.setattr(runs, "_trainer", lambda settings, places, others: trainer(settings, places, [*others, seen]))
    epochs = changes.pop("epochs")
    run(
        tiny_lab.settings(rule=replace(rule_settings("BP"), lr=1e-2, **changes), epochs=epochs),
        tiny_lab.splits(),
        folder,
    )
    return seen


def test_exponential_falls_to_95_per_cent_after_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = rates(tmp_path, monkeypatch, schedule="exponential", epochs=3)
    assert seen.steps == pytest.approx([1e-2 * 0.95**epoch for epoch in range(3) for _ in range(8)])


def test_multistep_falls_after_60_and_90_per_cent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = rates(tmp_path, monkeypatch, schedule="multistep", epochs=10)
    assert seen.epochs == pytest.approx([1e-2] * 6 + [1e-3] * 3 + [1e-4])
    assert seen.steps[47:49] == pytest.approx([1e-2, 1e-3])  # not before the 60 per cent are over


def test_plateau_falls_where_the_training_loss_has_not_fallen_for_more_than_5_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    measured = runs.Learner.measured
    monkeypatch.setattr(runs.Learner, "measured", lambda self: measured(self) | {"train_loss": next(losses)})
    seen = rates(tmp_path, monkeypatch, schedule="plateau", epochs=9)
    # The loss is lowest after the second epoch; five more are patience, and the sixth is too much.
    assert seen.epochs == pytest.approx([1e-2] * 8 + [1e-3])


def test_a_plateau_is_remembered_by_a_run_that_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A constant loss: the rate falls after the 7th epoch, wherever the run was interrupted before.
    measured = runs.Learner.measured
    monkeypatch.setattr(runs.Learner, "measured", lambda self: measured(self) | {"train_loss": 1.0})
    settings = tiny_lab.settings(rule=replace(rule_settings("BP"), lr=1e-2, schedule="plateau"), epochs=8)

    class Interrupting(Callback):
        def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.current_epoch == 4:
                raise KeyboardInterrupt

    trainer = runs._trainer
    with monkeypatch.context() as patch:
        patch.setattr(runs, "_trainer", lambda s, places, others: trainer(s, places, [*others, Interrupting()]))
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run(settings, tiny_lab.splits(), tmp_path)
    seen = Rates()
    monkeypatch.setattr(runs, "_trainer", lambda s, places, others: trainer(s, places, [*others, seen]))
    run(settings, tiny_lab.splits(), tmp_path)
    assert seen.epochs == pytest.approx([1e-2] * 3 + [1e-3])


def test_alignment_is_measured_when_it_is_asked_for(tmp_path: Path) -> None:
    found = {
        times: [
            len(epoch["alignment"])
            for epoch in run(tiny_lab.settings(epochs=3, alignment=times), tiny_lab.splits(), tmp_path)["epochs"]
        ]
        for times in ("every", "last", "never")
    }
    assert found == {"every": [2, 2, 2], "last": [0, 0, 2], "never": [0, 0, 0]}


def test_measuring_alignment_changes_no_other_number(tmp_path: Path) -> None:
    every, never = (
        run(tiny_lab.settings(epochs=3, alignment=times), tiny_lab.splits(), tmp_path)["epochs"]
        for times in ("every", "never")
    )
    assert [epoch["train_loss"] for epoch in every] == [epoch["train_loss"] for epoch in never]
    assert torch.tensor([epoch["eval_loss"] for epoch in every]).isfinite().all()
