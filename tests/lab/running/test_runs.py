"""Runs: the same whether interrupted or not, and never repeated for nothing."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import bpfree
from bpfree.lab.disk.files import read_json, write_json
from bpfree.lab.display.terminal import Display
from bpfree.lab.errors import RunError, SettingsError, WriteError
from bpfree.lab.kept.checkpoints import WholeFiles
from bpfree.lab.running import runs
from bpfree.lab.running.runs import Places, run
from bpfree.lab.settings import RuleSettings, RunSettings, Schedule, rule_settings
from bpfree.lab.settings.model import ModelSettings
from support import tiny_lab
from support.interrupted_runs import STEPS, Interrupting, assert_equal, crash, timeless


def state(settings: RunSettings, directory: Path) -> dict[str, Any]:
    return torch.load(Places.of(settings, tiny_lab.splits(), directory).checkpoint, weights_only=True)


@pytest.mark.parametrize("label", ["BP", "DFA", "DRTP", "FA", "brSF"])
def test_a_resumed_run_equals_the_uninterrupted_one(label: str, tmp_path: Path) -> None:
    settings = tiny_lab.settings(label)
    whole = run(settings, tiny_lab.splits(), tmp_path / "whole", keep_checkpoint=True)
    with pytest.raises(OSError, match="stopped here"):
        run(settings, tiny_lab.splits(), tmp_path / "broken", display=Interrupting(2 * STEPS + 3, crash))
    assert len(state(settings, tmp_path / "broken")["random_state"]["cpu"])
    torch.rand(5)  # another process would not have this one's random state
    resumed = run(settings, tiny_lab.splits(), tmp_path / "broken", keep_checkpoint=True)
    assert timeless(resumed) == timeless(whole)
    expected, found = (state(settings, tmp_path / place) for place in ("whole", "broken"))
    assert any(key.startswith("attachment.") for key in expected["state_dict"])
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "random_state"):
        assert_equal(found[part], expected[part], part)


def test_the_duration_of_a_resumed_run_is_that_of_all_its_pieces(tmp_path: Path) -> None:
    settings = tiny_lab.settings()
    began = time.perf_counter()
    with pytest.raises(OSError, match="stopped here"):
        run(settings, tiny_lab.splits(), tmp_path, display=Interrupting(2 * STEPS + 3, crash))
    first = time.perf_counter() - began
    checkpoint = state(settings, tmp_path)
    (records,) = [kept for kept in checkpoint["callbacks"].values() if "epochs" in kept]
    assert 0 < records["duration"] < first
    records["duration"] = 1000.0  # as if it had been a slow machine
    WholeFiles().save_checkpoint(checkpoint, Places.of(settings, tiny_lab.splits(), tmp_path).checkpoint)
    began = time.perf_counter()
    record = run(settings, tiny_lab.splits(), tmp_path)
    assert 1000 < record["duration"] < 1000 + time.perf_counter() - began
    assert (
        json.loads(Places.of(settings, tiny_lab.splits(), tmp_path).record.read_text())["duration"]
        == record["duration"]
    )


def killed(directory: Path) -> None:
    """Run until the process is killed, in the third step of the third epoch of eight steps each."""
    stop = Interrupting(2 * STEPS + 3, lambda: os.kill(os.getpid(), signal.SIGKILL))
    run(tiny_lab.settings("DFA"), tiny_lab.splits(), directory, display=stop)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
def test_a_killed_process_is_continued_bit_for_bit(tmp_path: Path) -> None:
    # A copy of this process: a new one would import everything again.
    process = multiprocessing.get_context("fork").Process(target=killed, args=(tmp_path / "killed",))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    settings = tiny_lab.settings("DFA")
    assert not Places.of(settings, tiny_lab.splits(), tmp_path / "killed").record.exists()
    assert state(settings, tmp_path / "killed")["epoch"] == 1  # counted from 0: two are complete
    resumed = run(settings, tiny_lab.splits(), tmp_path / "killed", keep_checkpoint=True)
    whole = run(settings, tiny_lab.splits(), tmp_path / "whole", keep_checkpoint=True)
    assert timeless(resumed) == timeless(whole)
    for part in ("state_dict", "optimizer_states", "random_state"):
        assert_equal(*(state(settings, tmp_path / place)[part] for place in ("killed", "whole")), part)


def test_a_finished_run_is_read_and_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(tiny_lab.settings(), epochs=1)
    record = run(settings, tiny_lab.splits(), tmp_path)
    monkeypatch.setattr(runs, "_train", lambda *_: pytest.fail("it ran again"))
    assert run(settings, tiny_lab.splits(), tmp_path)["epochs"] == json.loads(json.dumps(record["epochs"]))
    assert not list(tmp_path.glob("**/*.ckpt"))


def test_every_setting_and_the_data_are_in_the_name() -> None:
    data, settings = tiny_lab.splits().describe(), tiny_lab.settings()
    changed = [
        replace(settings, seed=1),
        replace(settings, epochs=5),
        replace(settings, batch_size=16),
        replace(settings, threads=2),
        replace(settings, details=True),
        replace(settings, model=settings.model | {"init_args": {"hidden": [16]}}),
        replace(settings, rule=replace(settings.rule, lr=0.5)),
        replace(settings, rule=replace(settings.rule, optimizer="SGD")),
        replace(settings, rule=replace(settings.rule, schedule="constant")),
        replace(settings, rule=replace(settings.rule, window=2)),
        replace(settings, rule=replace(settings.rule, alternate=2)),
        replace(settings, rule=RuleSettings(rule=bpfree.DFA(error="sign"), lr=settings.rule.lr)),
        replace(settings, rule=RuleSettings(rule=bpfree.DRTP(), lr=settings.rule.lr)),
        replace(
            settings,
            rule=RuleSettings(rule=bpfree.DFA(feedback=bpfree.Feedback(shared=False)), lr=settings.rule.lr),
        ),
    ]
    names = [settings.name(data), *(entry.name(data) for entry in changed)]
    names += [
        settings.name(data | {"checksums": {"made up": "1"}}),
        settings.name(data | {"measured_on": "validation"}),
    ]
    assert len(set(names)) == len(names)
    assert tiny_lab.settings().name(data) == names[0]


def test_a_rule_that_is_being_written_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import dataclasses, bpfree\n@dataclasses.dataclass(frozen=True)\nclass Draft(bpfree.DFA):\n    pass\n"
    (tmp_path / "draft_rule.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    import draft_rule

    settings = tiny_lab.settings(rule=RuleSettings(rule=draft_rule.Draft()))
    before = settings.name({})
    (tmp_path / "draft_rule.py").write_text(source + "# another thought\n")
    assert settings.name({}) != before


def test_weights_and_order_are_those_of_the_seed_whatever_the_rule() -> None:
    first, other = (runs.learner(tiny_lab.settings(label), tiny_lab.splits()) for label in ("BP", "DFA"))
    assert_equal(dict(first.model.state_dict()), dict(other.model.state_dict()))
    another = runs.learner(tiny_lab.settings(seed=1), tiny_lab.splits())
    assert not torch.equal(next(first.model.parameters()), next(another.model.parameters()))


def test_the_record_holds_what_reports_read(tmp_path: Path) -> None:
    record = run(tiny_lab.settings(details=True, epochs=2), tiny_lab.splits(), tmp_path)
    assert [epoch["epoch"] for epoch in record["epochs"]] == [1, 2]
    assert record["accuracy"] == record["epochs"][-1]["eval_accuracy"]
    assert record["parameters"] == 64 * 16 + 16 + 16 * 16 + 16 + 16 * 4 + 4
    assert record["filters_shape"] == [8, 8]
    assert [len(row) for row in record["filters"]] == [64] * 16
    assert {len(record["embedding"][key]) for key in ("x", "y", "label")} == {60}
    assert record["embedding"]["label"] == tiny_lab.splits().evaluation.y.tolist()
    names = [tap["name"] for tap in record["epochs"][0]["alignment"]]
    assert names == ["2", "5"]
    assert record["embedding"]["layer"] == "5"
    # At least the gradients of the weights are held at the end of the backward pass, 4 bytes each.
    assert record["peak_memory_bytes"] >= 4 * record["parameters"]
    assert record["feedback_bytes"] == 4 * 4 * 16
    assert record["alignment_mean"] == pytest.approx(
        statistics.fmean(tap["cosine_mean"] for tap in record["epochs"][-1]["alignment"])
    )


@pytest.mark.parametrize(("window", "places"), [(1, ["2", "4", "6"]), (2, ["4", "6"])])
def test_alignment_is_measured_between_taps_where_the_model_asks_for_it(
    window: int, places: list[str], tmp_path: Path
) -> None:
    asked = ModelSettings("BottleneckMLP", {"hidden": [9, 8, 7], "bottleneck": 9})
    rule = replace(rule_settings("DFA"), window=window)
    settings = tiny_lab.settings(rule=rule, model=asked.describe(), taps=asked.suggestion("taps"))
    record = run(settings, tiny_lab.splits(), tmp_path)
    assert [place["name"] for place in record["epochs"][-1]["alignment"]] == places


def test_a_window_reaches_the_rule() -> None:
    task = runs.learner(tiny_lab.settings(rule=replace(rule_settings("DFA"), window=3)), tiny_lab.splits())
    x, y = tiny_lab.splits().train.x[:8], tiny_lab.splits().train.y[:8]
    task.model.eval()
    torch.nn.functional.cross_entropy(task(x), y).backward()
    found = [weight.grad.clone() for weight in task.model.parameters()]
    task.model.zero_grad()
    # Two taps: a window of three is as deep as the network, which makes it backpropagation.
    with task.attachment.paused():
        torch.nn.functional.cross_entropy(task(x), y).backward()
    for gradient, weight in zip(found, task.model.parameters(), strict=True):
        torch.testing.assert_close(gradient, weight.grad)


def test_alternating_cuts_reach_the_rule() -> None:
    rule = replace(rule_settings("DFA"), alternate=4, alternate_order="random")
    plan = runs.learner(tiny_lab.settings(rule=rule), tiny_lab.splits()).attachment.mechanism.plan
    assert (plan.alternate, plan.alternate_order) == (4, "random")


class Weighted(bpfree.BP):
    """A rule with a weight of its own, whose gradient it sets, as rules with learned backward weights do."""

    def mechanism(self, plan: Any) -> Any:
        mechanism = super().mechanism(plan)
        mechanism.own = torch.nn.Parameter(torch.ones(3))
        return mechanism


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "SGD"])
def test_weights_of_the_rule_are_optimized_as_the_models(optimizer: str) -> None:
    rule = RuleSettings(rule=Weighted(), optimizer=optimizer, lr=0.5, weight_decay=0.1)
    task = runs.learner(tiny_lab.settings(rule=rule), tiny_lab.splits())
    own = task.attachment.mechanism.own
    made = task.optimizer()
    (group,) = made.param_groups
    assert [weight is own for weight in group["params"]] == [False] * len(list(task.model.parameters())) + [True]
    own.grad = torch.ones(3)
    made.step()
    # The first step of Adam is lr, of SGD lr times the gradient; decay is in the gradient, or beside it for AdamW.
    expected = {"Adam": 1 - 0.5, "AdamW": 1 - 0.5 - 0.05, "SGD": 1 - 0.5 * 1.1}[optimizer]
    torch.testing.assert_close(own.detach(), torch.full((3,), expected))


def test_the_rule_learns(tmp_path: Path) -> None:
    record = run(tiny_lab.settings(rule=rule_settings("DFA", lr=0.01), epochs=8), tiny_lab.splits(), tmp_path)
    assert record["accuracy"] > 60  # chance is 25
    assert record["epochs"][-1]["train_loss"] < record["epochs"][0]["train_loss"]


def test_a_run_that_diverges_is_named(tmp_path: Path) -> None:
    model = ModelSettings("MLP", {"hidden": [16], "activation": "relu"}).describe()
    settings = tiny_lab.settings(rule=RuleSettings(rule=bpfree.DFA(), optimizer="SGD", lr=1e30), model=model)
    with pytest.raises(RunError, match=r"DFA, seed 0: .*(NaN|nan)"):
        run(settings, tiny_lab.splits(), tmp_path)


@dataclass(frozen=True, kw_only=True)
class Demanding(bpfree.DFA):
    """A rule of somebody's own, one of whose options has no default."""

    gain: float


def test_a_rule_whose_option_has_no_default_is_recorded(tmp_path: Path) -> None:
    record = run(tiny_lab.settings(rule=RuleSettings(rule=Demanding(gain=2.0))), tiny_lab.splits(), tmp_path)
    assert record["settings"]["options"] == {"gain": 2.0}


@pytest.mark.parametrize("damage", ["half", "altered", "another"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    settings = tiny_lab.settings(epochs=2)
    places = Places.of(settings, tiny_lab.splits(), tmp_path)
    run(settings, tiny_lab.splits(), tmp_path, keep_checkpoint=True)
    places.record.unlink()
    whole = places.checkpoint.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    places.checkpoint.write_bytes({"half": whole[:middle], "altered": flipped, "another": b"half of"}[damage])
    with pytest.raises(RunError, match=r"last\.ckpt is damaged .*Delete it"):
        run(settings, tiny_lab.splits(), tmp_path)


def test_a_mistake_in_ones_own_rule_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny_lab.settings(epochs=2)
    with pytest.raises(OSError, match="stopped here"):
        run(settings, tiny_lab.splits(), tmp_path, display=Interrupting(STEPS + 1, crash))
    assert Places.of(settings, tiny_lab.splits(), tmp_path).checkpoint.is_file()

    def mistaken(*_: object) -> None:
        raise KeyError("a mistake of one's own")

    monkeypatch.setattr(bpfree.DFA, "signals", mistaken)
    with pytest.raises(KeyError, match="of one's own"):
        run(settings, tiny_lab.splits(), tmp_path)


def test_a_full_disk_is_told_once_and_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = b"the state of the epoch before"
    path = tmp_path / "last.ckpt"
    path.write_bytes(before)

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(WriteError, match=r"last\.ckpt could not be written .*Free some space"):
        WholeFiles().save_checkpoint({}, path)
    assert path.read_bytes() == before
    # Other runs would meet the same: this is not a run that failed.
    with pytest.raises(WriteError):
        run(tiny_lab.settings(), tiny_lab.splits(), tmp_path / "runs")


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(WriteError, match=r"the folder .*taken.* cannot be made .*Name another"):
        run(tiny_lab.settings(), tiny_lab.splits(), tmp_path / "taken")


def test_runs_on_a_gpu_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = tiny_lab.settings().name({})
    monkeypatch.setattr("bpfree.lab.settings.device", lambda: "cuda")
    assert tiny_lab.settings().name({}) != on_cpu


@pytest.mark.parametrize("option", [{"lr": -1.0}, {"lr": float("nan")}, {"weight_decay": -1.0}, {"momentum": -0.5}])
def test_numbers_that_no_optimizer_takes_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=f"{next(iter(option))} .*must be 0 or a positive number"):
        RuleSettings(rule=bpfree.DFA(), **option)


@pytest.mark.parametrize("schedule", ["exponential", "plateau"])
def test_schedules_that_count_passes_are_not_for_runs_that_count_steps(schedule: Schedule) -> None:
    with pytest.raises(SettingsError, match=rf"--schedule {schedule} counts passes"):
        tiny_lab.settings(rule=RuleSettings(rule=bpfree.DFA(), schedule=schedule), steps=8, epochs=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"hidden": [-4]}, "negative dimension"),
        ({"hidden": [4], "dropout": 2.0}, "dropout probability"),
        ({"hidden": [4, 0]}, r"weight has the shape \(0, 4\): a layer of no numbers"),
    ],
)
def test_what_is_wrong_with_the_arguments_of_a_model_is_said_in_one_line(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=rf"^--model MLP: [^\n]*{said}[^\n]*$"):
        ModelSettings("MLP", arguments).build((1, 8, 8), 4)


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_json(tmp_path / "a.json", {"x": float("nan"), "y": [1.5]})
    assert json.loads(path.read_text()) | {"checksum": ""} == {"x": None, "y": [1.5], "checksum": ""}
    assert read_json(path) == {"x": None, "y": [1.5]}

    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(WriteError, match=r"a\.json could not be written \(No space left on device\)"):
        write_json(path, {"x": 2})
    assert json.loads(path.read_text())["y"] == [1.5]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("batch_size", 0), ("threads", 0), ("seed", -1)])
def test_settings_that_mean_nothing(name: str, value: int) -> None:
    with pytest.raises(SettingsError, match=str(value)):
        tiny_lab.settings(**{name: value})


def test_the_learning_rate_follows_its_schedule(tmp_path: Path) -> None:
    rule, rates = rule_settings("BP", lr=0.5), []

    class Watching(Display):
        def step(self, samples: int = 0) -> None:
            rates.append(task.trainer.optimizers[0].param_groups[0]["lr"])

    made = runs.learner
    with pytest.MonkeyPatch.context() as patch:
        for schedule in ("cosine", "constant"):
            settings = tiny_lab.settings(rule=replace(rule, schedule=schedule), epochs=2)
            task = made(settings, tiny_lab.splits())
            patch.setattr(runs, "learner", lambda *_, task=task: task)
            patch.setattr(runs, "_step_memory", lambda *_: 0)
            run(settings, tiny_lab.splits(), tmp_path, display=Watching(None))
    steps = 2 * STEPS
    # What is seen after a step is the next one's rate.
    expected = [0.25 * (1 + math.cos(math.pi * step / steps)) for step in range(1, steps + 1)]
    assert rates[:steps] == pytest.approx(expected)
    assert rates[steps:] == [0.5] * steps
