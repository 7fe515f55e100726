"""Clicks: what predictions are judged by, and runs that stop early with the weights of their best evaluation."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("polars", reason="needs the extra [clicks] (polars)")

from bpfree.lab.data import load
from bpfree.lab.data.clicks import Clicks, ClickSettings
from bpfree.lab.errors import DataError, RunError, SettingsError
from bpfree.lab.options.training import TrainOptions
from bpfree.lab.running import runs
from bpfree.lab.running.runs import Places, learner, run
from bpfree.lab.settings import RunSettings
from bpfree.lab.settings.model import ModelSettings
from bpfree.lab.tasks.clicks import ClickPrediction, scores
from support import log_of_shops
from support.interrupted_runs import Interrupting, assert_equal, crash

STEPS = 8  # an epoch: 480 rows in batches of 64


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return log_of_shops.folder(tmp_path_factory.mktemp("clicks"))


@pytest.fixture(scope="module")
def data(log: Path) -> Clicks:
    found = load("clicks", log / "log", clicks=ClickSettings(schema=str(log / "schema.yaml"), measured_on="test"))
    assert isinstance(found, Clicks)
    return found


def settings(**changes: Any) -> RunSettings:
    """A run of DeepFM by DFA, with dropout, that begins to overfit after some epochs."""
    model = {"class_path": "DeepFM", "init_args": {"width": 4, "hidden": [16, 16], "dropout": 0.2}}
    options = {"data": "clicks", "rule": "DFA", "batch_size": 64, "epochs": 12, "lr": 0.01, "threads": 1}
    return TrainOptions(**(options | {"model": ModelSettings(**model)} | changes)).run("DFA", 0, details=False)


def test_scores_of_a_few_rows_by_hand() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, 0.5, -2.0])
    clicks = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0])
    # Pairs of a click and none: 2 > -1, 2 > .5; .5 > -1, .5 = .5; -2 < -1, -2 < .5.
    assert scores(logits, clicks)["auc"] == pytest.approx((2 + 1.5 + 0) / 6)
    p = [1 / (1 + math.exp(-value)) for value in logits.tolist()]
    losses = [-math.log(q if clicked else 1 - q) for q, clicked in zip(p, clicks.tolist(), strict=True)]
    assert scores(logits, clicks)["loss"] == pytest.approx(sum(losses) / 5)
    assert scores(logits, clicks)["calibration"] == pytest.approx(sum(p) / 3)
    # Of 15 parts of the probabilities, .622 is twice in one and the others are alone.
    gaps = [abs(p[0] - 1), abs(p[1] - 0), 2 * abs(p[2] - 0.5), abs(p[4] - 1)]
    assert scores(logits, clicks)["calibration_error"] == pytest.approx(sum(gaps) / 5)


def test_auc_is_that_of_all_pairs_however_close_the_probabilities_are() -> None:
    """Two thousand probabilities between .03 and .030001: bins, or half precision, would see one."""
    logits = torch.linspace(-3.4761, -3.4760, 2000, dtype=torch.float64)[torch.randperm(2000)]
    clicks = (torch.rand(2000) < 0.3).float()
    higher = (logits[clicks == 1][:, None] > logits[clicks == 0]).double().mean()
    assert scores(logits, clicks)["auc"] == pytest.approx(float(higher), abs=1e-6)


def predicted(model: torch.nn.Module, data: Clicks, part: str) -> tuple[Tensor, Tensor]:
    rows = getattr(data, part)
    x, y = rows.batch(torch.arange(len(rows)))
    with torch.no_grad():
        return model.eval()(x), y


def checkpoint(run_settings: RunSettings, data: Clicks, folder: Path) -> dict[str, Any]:
    return torch.load(Places.of(run_settings, data, folder).checkpoint, weights_only=True)


def test_a_run_ends_with_the_weights_of_its_best_evaluation(data: Clicks, tmp_path: Path) -> None:
    early = settings(patience=2)
    record = run(early, data, tmp_path, keep_checkpoint=True)
    aucs = [epoch["validation_auc"] for epoch in record["epochs"]]
    best = aucs.index(max(aucs))
    assert record["taken_epoch"] == best + 1
    assert best + 2 == len(aucs) - 1 < early.epochs - 1  # two more, and not all
    task = learner(early, data)
    task.load_state_dict(checkpoint(early, data, tmp_path)["state_dict"])
    found = {part: scores(*predicted(task.model, data, part)) for part in ("validation", "test")}
    assert found["validation"]["auc"] == pytest.approx(aucs[best], abs=1e-6)
    assert record["auc"] == record["epochs"][best]["eval_auc"] == pytest.approx(found["test"]["auc"], abs=1e-6)
    assert record["log_loss"] == pytest.approx(found["test"]["loss"], abs=1e-6)
    assert record["validation_auc"] == pytest.approx(aucs[best], abs=1e-6)
    assert record["settings"]["patience"] == 2


@pytest.mark.parametrize(("epochs", "stops"), [(3, False), (12, True)])
def test_the_released_slip_takes_the_last_weights_of_a_run_that_did_not_stop(
    epochs: int, stops: bool, data: Clicks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation AUC falls from the second evaluation on: a run of 3 is over before 2 more have brought nothing."""
    falling = iter(range(100, 0, -1))
    measured = ClickPrediction.measured
    monkeypatch.setattr(
        ClickPrediction, "measured", lambda self: measured(self) | {"validation_auc": next(falling) / 100}
    )
    shorter = settings(patience=3 if not stops else 2, epochs=epochs, restored="best-if-stopped")
    record = run(shorter, data, tmp_path)
    assert len(record["epochs"]) == 3
    assert record["taken_epoch"] == (1 if stops else 3)
    assert record["auc"] == record["epochs"][record["taken_epoch"] - 1]["eval_auc"]


@pytest.mark.parametrize("stops", [[3], [2 * STEPS + 1, STEPS]])
def test_a_stopped_run_goes_on_to_the_same_end(stops: list[int], data: Clicks, tmp_path: Path) -> None:
    early = settings(patience=2)
    whole = run(early, data, tmp_path / "whole", keep_checkpoint=True)
    for after in stops:
        with pytest.raises(OSError, match="stopped here"):
            run(early, data, tmp_path / "broken", display=Interrupting(after, crash))
    assert timeless(run(early, data, tmp_path / "broken", keep_checkpoint=True)) == timeless(whole)
    ends = [checkpoint(early, data, tmp_path / name) for name in ("whole", "broken")]
    assert_equal(*[{key: end[key] for key in ("state_dict", "optimizer_states")} for end in ends])


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    """A record without times and what they decide."""
    epochs = [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in record["epochs"]]
    kept = ("auc", "log_loss", "calibration", "validation_auc", "taken_epoch")
    return {"epochs": epochs, **{key: record[key] for key in kept}}


def test_a_run_that_was_killed_after_it_had_stopped_takes_no_further_step(
    data: Clicks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = settings(patience=2)
    whole = run(early, data, tmp_path / "whole")

    def die(*_: object) -> None:
        raise OSError("killed before the record was written")

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_json", die)
        with pytest.raises(OSError, match="killed before"):
            run(early, data, tmp_path / "broken")
    again = run(early, data, tmp_path / "broken", display=Interrupting(1, crash))
    assert timeless(again) == timeless(whole)


def test_parts_of_one_class_have_no_auc(log: Path, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    found = log_of_shops.rows(300)
    for row in found[240:270]:  # the rows for validation
        row["clicked"] = "0"
    log_of_shops.written(tmp_path / "log" / "log.csv", found)
    (tmp_path / "schema.yaml").write_text(log_of_shops.SCHEMA + "split: {order: as written}\n")
    one = load("clicks", tmp_path / "log", clicks=ClickSettings(schema=str(tmp_path / "schema.yaml")))
    with pytest.raises(DataError, match=r"the validation part of log has 30 rows and 0 clicks: AUC compares"):
        run(settings(), one, tmp_path)


def test_a_factorization_machine_has_no_place_for_feedback(data: Clicks) -> None:
    with pytest.raises(SettingsError, match=r"FM has no layer behind another one: .* Take --rule BP"):
        learner(settings(model=ModelSettings("FM")), data)


def test_a_model_of_another_shape_is_named(data: Clicks) -> None:
    task = learner(settings(), data)
    with pytest.raises(RunError, match=r"gives \(4, 2\) for 4 rows"):
        task.loss(torch.zeros(4, 2), torch.zeros(4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "digits", "patience": 2}, "--patience: runs on digits go on to their end"),
        ({"data": "clicks", "patience": 0}, "--patience 0 must be at least 1"),
        ({"data": "clicks", "restored": "best-if-stopped"}, "does not stop early; also give --patience"),
        ({"data": "clicks", "augmentation": replace(TrainOptions().augmentation, flip=True)}, "has no images"),
    ],
)
def test_settings_without_an_effect_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TrainOptions(**changes).run("DFA", 0, details=False)
