"""Runs that end in the middle of an epoch and go on from there: bit for bit as if nothing had happened."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import bpfree
from bpfree.lab.commands.train import train
from bpfree.lab.data.augmentation import Augmentation
from bpfree.lab.data.text import Text
from bpfree.lab.display.terminal import Display
from bpfree.lab.errors import RunError
from bpfree.lab.kept import checkpoints
from bpfree.lab.kept.checkpoints import previous
from bpfree.lab.options.training import TrainOptions
from bpfree.lab.running.runs import Places, run
from bpfree.lab.settings import RuleSettings, RunSettings, rule_settings
from bpfree.lab.settings.model import ModelSettings
from bpfree.lab.tasks.learner import Learner
from lab.damage.alter import altered
from support import tiny_lab, tiny_text
from support.interrupted_runs import STEPS, Interrupting, assert_equal, crash


@pytest.fixture(autouse=True)
def at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints within epochs are written after each step, not every ten minutes."""
    monkeypatch.setattr(checkpoints, "_SECONDS", 0.0)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    return tiny_text.text(tmp_path_factory.mktemp("text"))


def long(**changes: Any) -> RunSettings:
    """Twelve steps on a text, and one evaluation."""
    return tiny_text.settings(**({"epochs": 1, "alignment": "never"} | changes))


def rule(label: str, **changes: Any) -> RuleSettings:
    return replace(rule_settings(label, lr=0.01), **changes)


FORWARD = long(label="FDFA", accumulate=2)


def continued(settings: RunSettings, data: Any, folder: Path, stops: list[int]) -> dict[str, Any]:
    """The record of a run that was stopped after so many steps of each process, and then went on to its end."""
    for stop in stops:
        with pytest.raises(OSError, match="stopped here"):
            run(settings, data, folder, display=Interrupting(stop, crash))
        torch.rand(3)  # another process would not have this one's random state
    return run(settings, data, folder, keep_checkpoint=True)


def final(settings: RunSettings, data: Any, folder: Path) -> dict[str, Any]:
    state = torch.load(Places.of(settings, data, folder).checkpoint, weights_only=True)
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "random_state", "global_step")
    return {part: state[part] for part in parts} | {"plateau": state.get("plateau", {})}


def timeless(record: dict[str, Any]) -> str:
    """As text, in which NaN is NaN."""
    return json.dumps(
        [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in record["epochs"]]
    )


def assert_the_same(
    settings: RunSettings, data: Any, tmp_path: Path, stops: list[int], whole: tuple[str, dict[str, Any]] | None = None
) -> None:
    """Compare a run in pieces with ``whole``: numbers and end of a run that nothing has stopped."""
    if whole is None:
        record = run(settings, data, tmp_path / "whole", keep_checkpoint=True)
        whole = timeless(record), final(settings, data, tmp_path / "whole")
    found = continued(settings, data, tmp_path / "broken", stops)
    assert timeless(found) == whole[0]
    assert_equal(final(settings, data, tmp_path / "broken"), whole[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"label": "BP", "rule": rule("BP", optimizer="RAdam", beta2=0.98)},
        {"label": "DFA", "rule": rule("DFA", schedule="noam", warmup=3), "clip": 0.05},
        {"label": "FDFA", "rule": rule("FDFA", rule=bpfree.FDFA(every=2)), "accumulate": 4},
        {"label": "GrAPE", "precision": "bf16"},
        {"label": "DKP"},
        {"label": "KP", "rule": rule("KP", optimizer="AdamW", weight_decay=0.1)},
        {"label": "FG-A"},
    ],
    ids=lambda changes: changes["label"],
)
def test_a_run_stopped_within_an_epoch_goes_on_bit_for_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    """Eight steps of images: stopped in the third, and again in the sixth, each of which is lost and made again."""
    assert_the_same(tiny_lab.settings(**changes, epochs=1), tiny_lab.splits(), tmp_path, [3, 4])


@pytest.fixture(scope="module")
def undisturbed(text: Text, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """Numbers and end of a run on the text, without checkpoints within the epoch."""
    folder = tmp_path_factory.mktemp("whole")
    record = run(FORWARD, text, folder, keep_checkpoint=True)
    return timeless(record), final(FORWARD, text, folder)


@pytest.mark.parametrize("stop", [1, 2, 7, 12])
def test_so_it_does_on_a_text_wherever_it_stops(
    stop: int, text: Text, undisturbed: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    assert_the_same(FORWARD, text, tmp_path, [stop], undisturbed)


@pytest.mark.parametrize("stops", [[STEPS + 3], [STEPS, 1], [3, STEPS, STEPS + 4]])
def test_so_it_does_between_epochs(stops: list[int], tmp_path: Path) -> None:
    """An order anew for each epoch, a smaller last batch, accuracy beside the loss, random flips of images."""
    settings = tiny_lab.settings(epochs=3, augmentation=Augmentation(flip=True))
    assert_the_same(settings, tiny_lab.splits(), tmp_path, stops)


def test_a_validation_plateau_goes_on_as_it_stood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Learner.measured
    monkeypatch.setattr(Learner, "measured", lambda self: measured(self) | {"eval_loss": 1.0})
    data = replace(tiny_lab.splits(), measured_on="validation")
    settings = tiny_lab.settings(rule=rule("DFA", schedule="validation-plateau"), epochs=5)
    assert_the_same(settings, data, tmp_path, [2 * STEPS + 3, STEPS + 2])
    (state,) = final(settings, data, tmp_path / "broken")["optimizer_states"]
    assert state["param_groups"][0]["lr"] == pytest.approx(0.01 * 0.2**2)


def kill(folder: Path, text: Text) -> None:
    run(FORWARD, text, folder, display=Interrupting(8, lambda: os.kill(os.getpid(), signal.SIGKILL)))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
def test_a_process_killed_within_an_epoch_is_continued_bit_for_bit(
    text: Text, undisturbed: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    process = multiprocessing.get_context("fork").Process(target=kill, args=(tmp_path / "broken", text))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    places = Places.of(FORWARD, text, tmp_path / "broken")
    assert torch.load(places.checkpoint, weights_only=True)["global_step"] == 7
    assert_the_same(FORWARD, text, tmp_path, [], undisturbed)


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_of_two_checkpoints_within_an_epoch_the_whole_one_is_continued_from(text: Text, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="stopped here"):
        run(long(), text, tmp_path / "broken", display=Interrupting(6, crash))
    places = Places.of(long(), text, tmp_path / "broken")
    steps = [torch.load(path, weights_only=True)["global_step"] for path in places.checkpoints()]
    assert places.checkpoints() == [places.checkpoint, previous(places.checkpoint)]
    assert steps == [5, 4]
    altered(places.checkpoint)
    assert_the_same(long(), text, tmp_path, [])


def test_seconds_are_those_of_all_steps_of_an_epoch(text: Text, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="stopped here"):
        run(long(), text, tmp_path, display=Interrupting(6, crash))
    place = Places.of(long(), text, tmp_path).checkpoint
    state = torch.load(place, weights_only=True)
    (clock,) = [kept for kept in state["callbacks"].values() if "total" in kept]
    assert clock["total"] > 0
    clock["total"] = 1000.0  # as if the steps before had been slow
    checkpoints.WholeFiles().save_checkpoint(state, place)
    (epoch,) = run(long(), text, tmp_path)["epochs"]
    assert 1000 < epoch["seconds"] < 1100


def test_checkpoints_are_written_when_the_time_has_passed(
    text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes 100 of these seconds: after steps 6 and 12, the second of which is the last."""
    written: list[int] = []
    passed = iter(range(0, 100_000, 100))
    monkeypatch.setattr(checkpoints, "_SECONDS", 600.0)
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: next(passed))
    save = checkpoints.WholeFiles.save_checkpoint

    def saving(self: Any, checkpoint: dict[str, Any], path: Path, **options: Any) -> None:
        written.append(checkpoint["global_step"])
        save(self, checkpoint, path, **options)

    monkeypatch.setattr(checkpoints.WholeFiles, "save_checkpoint", saving)
    run(long(steps=16, epochs=1), text, tmp_path)
    assert written[0] in (6, 7)
    assert written[1] - written[0] in (6, 7)
    assert written[-1] == 16
    assert len(written) == 3


def test_where_it_goes_on_is_said(text: Text, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stop in (6, 5):
        with pytest.raises(OSError, match="stopped here"):
            run(long(steps=12, epochs=2), text, tmp_path, display=Interrupting(stop, crash))
    run(long(steps=12, epochs=2), text, tmp_path, display=Display(Console(width=160)))
    assert "DFA, seed 0: continued after step 9 of 12" in capsys.readouterr().out
    settings = tiny_lab.settings()
    with pytest.raises(OSError, match="stopped here"):
        run(settings, tiny_lab.splits(), tmp_path, display=Interrupting(STEPS + 4, crash))
    run(settings, tiny_lab.splits(), tmp_path, display=Display(Console(width=160)))
    assert "DFA, seed 0: continued after step 3 of epoch 2 of 4" in capsys.readouterr().out


def test_other_settings_or_another_text_are_not_continued(text: Text, tmp_path: Path) -> None:
    folder = tiny_text.folder(tmp_path / "text")
    model = ModelSettings("CausalTransformer", tiny_text.SMALL)
    given: dict[str, Any] = {"data": "text", "data_dir": str(folder), "text": tiny_text.HOW, "model": model}
    given |= {"steps": 4, "evaluations": 1, "batch_size": 8, "out": str(tmp_path / "out"), "threads": 1}
    options = TrainOptions(**given)
    settings = options.run("DFA", 0, details=True)
    with pytest.raises(OSError, match="stopped here"):
        run(settings, tiny_text.text(tmp_path / "text"), tmp_path / "out", display=Interrupting(3, crash))
    with pytest.raises(RunError, match="holds an interrupted run of these settings: add --resume"):
        train(options)
    for changes in ({"clip": 0.5}, {"accumulate": 2}, {"seed": 1}):
        with pytest.raises(RunError, match="holds no checkpoint of a run with these settings"):
            train(replace(options, resume=True, **changes))
    (folder / "valid.txt").write_text("the cat sees fish .\n" * 40, encoding="utf-8")
    with pytest.raises(RunError, match="holds no checkpoint of a run with these settings"):
        train(replace(options, resume=True))
    tiny_text.folder(tmp_path / "text")
    assert train(replace(options, resume=True))["epochs"][0]["step"] == 4
