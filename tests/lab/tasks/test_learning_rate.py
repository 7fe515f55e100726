"""The schedule of the learning rate, and when alignment is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from bpfree.lab.data import Splits
from bpfree.lab.running import runs
from bpfree.lab.running.runs import run
from bpfree.lab.settings import rule_settings
from bpfree.lab.tasks.optimization import noam
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


def rates(folder: Path, monkeypatch: pytest.MonkeyPatch, data: Splits | None = None, **changes: Any) -> Rates:
    """Those of a run of eight steps an epoch, at 1e-2."""
    seen = Rates()
    trainer = runs._trainer
    monkeypatch.setattr(runs, "_trainer", lambda settings, places, others: trainer(settings, places, [*others, seen]))
    epochs = changes.pop("epochs")
    run(
        tiny_lab.settings(rule=replace(rule_settings("BP"), lr=1e-2, **changes), epochs=epochs),
        data or tiny_lab.splits(),
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


@pytest.mark.parametrize("warmup", [1, 5, 100])
def test_noam_is_that_of_vaswani_with_its_peak_at_the_learning_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warmup: int
) -> None:
    seen = rates(tmp_path, monkeypatch, schedule="noam", warmup=warmup, epochs=2)
    factor, width = 1e-2 * (512 * warmup) ** 0.5, 512
    expected = [factor * width**-0.5 * min(t**-0.5, t * warmup**-1.5) for t in range(1, 17)]
    assert seen.steps == pytest.approx(expected)
    if warmup <= 16:
        assert max(seen.steps) == seen.steps[warmup - 1] == pytest.approx(1e-2)


def test_the_papers_noam_has_its_peak_at_seven_ten_thousandths() -> None:
    assert abs((512 * 4000) ** -0.5 - 7.0e-4) < 2e-6
    assert max(noam(t, 4000) for t in range(1, 10_000)) == noam(4000, 4000) == 1


def held_out() -> Splits:
    return replace(tiny_lab.splits(), measured_on="validation")


@pytest.mark.parametrize(
    ("losses", "after"),
    [
        ([2.0, 2.0, 2.0, 2.0, 2.0], [0, 0, 0, 1, 1]),  # the third equal value is one too many
        ([2.0, 1.0, 1.5, 1.2, 0.9], [0, 0, 0, 0, 1]),
        ([2.0, 1.9, 1.8, 1.7, 1.6], [0, 0, 0, 0, 0]),
        ([2.0, 2.0 - 1e-5, 2.0 - 2e-5, 1.0, 1.0], [0, 0, 0, 1, 1]),  # less than a ten-thousandth has not fallen
    ],
)
def test_validation_plateau_falls_to_a_fifth_where_the_evaluated_loss_has_not_fallen_for_more_than_one_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, losses: list[float], after: list[int]
) -> None:
    told = iter(losses)
    measured = runs.Learner.measured
    # The training loss falls all the time: it is not the one that counts.
    training = iter([5.0, 4.0, 3.0, 2.0, 1.0])
    monkeypatch.setattr(
        runs.Learner, "measured", lambda self: measured(self) | {"eval_loss": next(told), "train_loss": next(training)}
    )
    seen = rates(tmp_path, monkeypatch, held_out(), schedule="validation-plateau", epochs=5)
    assert seen.epochs == pytest.approx([1e-2 * 0.2**n for n in after])


@pytest.mark.parametrize(
    ("schedule", "loss", "expected"),
    # A constant loss: the rate falls after the 7th epoch, or the third, wherever the run was interrupted before.
    [
        ("plateau", "train_loss", [1e-2] * 3 + [1e-3]),
        ("validation-plateau", "eval_loss", [2e-3] + [4e-4] * 2 + [8e-5]),
    ],
)
def test_a_plateau_is_remembered_by_a_run_that_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: Any, loss: str, expected: list[float]
) -> None:
    measured = runs.Learner.measured
    monkeypatch.setattr(runs.Learner, "measured", lambda self: measured(self) | {loss: 1.0})
    settings = tiny_lab.settings(rule=replace(rule_settings("BP"), lr=1e-2, schedule=schedule), epochs=8)

    class Interrupting(Callback):
        def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.current_epoch == 4:
                raise KeyboardInterrupt

    trainer = runs._trainer
    with monkeypatch.context() as patch:
        patch.setattr(runs, "_trainer", lambda s, places, others: trainer(s, places, [*others, Interrupting()]))
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run(settings, held_out(), tmp_path)
    seen = Rates()
    monkeypatch.setattr(runs, "_trainer", lambda s, places, others: trainer(s, places, [*others, seen]))
    run(settings, held_out(), tmp_path)
    assert seen.epochs == pytest.approx(expected)


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
