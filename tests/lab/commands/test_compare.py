"""The main job from end to end, on data small enough for a test."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path

import pytest
from rich.console import Console

import bpfree
from bpfree.lab import data, report
from bpfree.lab.commands import compare as comparing
from bpfree.lab.commands import main, make_parser
from bpfree.lab.commands.compare import compare, plan_runs
from bpfree.lab.disk.files import read_json
from bpfree.lab.errors import RunError, SettingsError
from bpfree.lab.options.command_line import command_line
from bpfree.lab.options.parser import read_options
from bpfree.lab.options.training import CompareOptions, TrainOptions
from bpfree.lab.running import runs
from bpfree.lab.settings import RuleOverrides, RuleSettings, rule_settings
from bpfree.lab.settings.model import ModelSettings
from support import tiny_lab

SMALL = ModelSettings("MLP", {"hidden": [16, 16]})


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.DATA_SETS, "tiny", lambda folder: tiny_lab.splits())


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def options(**changes: object) -> CompareOptions:
    given = {"data": "tiny", "rules": ["BP", "Shallow", "DFA"], "seeds": 2, "epochs": 2, "model": SMALL, "threads": 1}
    return CompareOptions(**(given | {"batch_size": 32} | changes))


def test_compare_from_end_to_end() -> None:
    text = io.StringIO()
    returned = compare(options(), Console(file=text, width=160))
    folder = Path("runs/compare-tiny")
    written = read_json(folder / "comparison.json")
    assert written == json.loads(json.dumps(returned).replace("NaN", "null"))
    assert written["format"] == "bpfree-comparison/1"
    assert [(run["label"], run["seed"]) for run in written["runs"]] == [
        (label, seed) for seed in (0, 1) for label in ("BP", "Shallow", "DFA")
    ]
    assert list(written["settings"]["rules"]) == ["BP", "Shallow", "DFA"]
    assert written["settings"]["rules"]["DFA"]["optimizer"] == "Adam"
    assert written["data"] | {"checksums": None} == {
        "name": "tiny", "n_train": 240, "n_eval": 60, "classes": 4, "shape": [1, 8, 8], "checksums": None,
    }  # fmt: skip
    assert [run["embedding"] is not None for run in written["runs"]] == [True] * 3 + [False] * 3
    assert [entry["label"] for entry in written["summary"]] == ["BP", "Shallow", "DFA"]
    assert written["summary"][0]["recovery"] in (1.0, None)
    exact = written["runs"][0]["epochs"][-1]["alignment"]
    assert [tap["cosine_mean"] for tap in exact] == pytest.approx([1.0, 1.0])
    assert written["runs"][1]["epochs"][-1]["alignment"][0]["cosine_mean"] is None
    assert written["runs"][0]["alignment_mean"] == pytest.approx(1.0)
    assert written["runs"][1]["alignment_mean"] is None
    # The feedback of DFA is one matrix for both taps, 4 classes x 16 units.
    assert [entry["feedback_bytes"] for entry in written["summary"]] == [0, 0, 4 * 4 * 16]
    assert (folder / "report.html").stat().st_size < 3e6
    shown = text.getvalue()
    assert "\x1b" not in shown
    for expected in ("DFA, seed 1, epoch 2/2: test accuracy", "[6/6]", "recovery", "feedback MiB", "report.html"):
        assert expected in shown


def test_compare_asked_again_runs_only_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    first = compare(options(rules=["BP", "DFA"], seeds=1))
    ran: list[str] = []
    train = runs._train

    def counted(settings, *rest):
        ran.append(f"{settings.label}{settings.seed}")
        return train(settings, *rest)

    monkeypatch.setattr(runs, "_train", counted)
    monkeypatch.setattr(comparing, "warm_up", lambda *_: ran.append("warm"))
    monkeypatch.setattr(report, "write", lambda comparison, path: path)
    assert compare(options(rules=["BP", "DFA"], seeds=1))["summary"] == first["summary"]
    assert ran == []
    compare(options(rules=["BP", "DFA", "FA"], seeds=2))
    # Warm before the first run, and only if there is one.
    assert ran == ["warm", "FA0", "BP1", "DFA1", "FA1"]
    ran.clear()
    compare(options(rules=["BP", "DFA"], seeds=1, settings={"DFA": RuleOverrides(lr=0.5)}))
    assert ran == ["warm", "DFA0"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RunError("the training loss is nan by step 8."), "DFA, seed 0: the training loss is nan by step 8."),
        (MemoryError("4 GiB"), "DFA, seed 0: MemoryError: 4 GiB"),
    ],
    ids=["diverged", "anything"],
)
def test_a_run_that_fails_stops_no_other_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, reason: str
) -> None:
    broken, ran, train = ["DFA0"], [], runs._train

    def perhaps(settings, *rest):
        ran.append(f"{settings.label}{settings.seed}")
        if ran[-1] in broken:
            raise error
        return train(settings, *rest)

    monkeypatch.setattr(runs, "_train", perhaps)
    monkeypatch.setattr(comparing, "warm_up", lambda *_: None)
    asked = ["compare", "--data", "tiny", "--rules", "DFA", "BP", "--seeds", "2", "--epochs", "1", "--batch-size", "32"]
    asked += ["--threads", "1", "--model.hidden", "[8]", "--out", "there"]
    assert main(asked) == 1
    assert ran == ["DFA0", "BP0", "DFA1", "BP1"]
    shown = capsys.readouterr()
    assert "1 of 4 runs failed" in shown.err
    assert reason in shown.err
    written = json.loads(Path("there/comparison.json").read_text())
    assert [(run["label"], run["seed"]) for run in written["runs"]] == [("BP", 0), ("DFA", 1), ("BP", 1)]
    assert {entry["label"]: entry["seeds"] for entry in written["summary"]} == {"DFA": 1, "BP": 2}
    assert reason in Path("there/report.html").read_text()
    ran.clear()
    broken.clear()
    assert main(asked) == 0
    assert ran == ["DFA0"]
    assert "A run failed" not in Path("there/report.html").read_text()


def test_nothing_is_written_where_every_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise RunError("the training loss is nan.")

    monkeypatch.setattr(runs, "_train", never)
    with pytest.raises(RunError, match=r"(?s)2 of 2 runs failed.*DFA, seed 0.*DFA, seed 1"):
        compare(options(rules=["DFA"]))
    assert not Path("runs/compare-tiny/comparison.json").exists()


def test_a_settings_file_and_the_command_line_meet() -> None:
    Path("mine.py").write_text(
        "from dataclasses import dataclass\nimport bpfree\n\n\n@dataclass(frozen=True)\nclass Scaled(bpfree.DFA):\n"
        "    gain: float = 1.0\n\n    def vector(self, delivery):\n        return self.gain * delivery.error\n"
    )
    Path("c.yaml").write_text(
        """
rules: [BP, DFA, Mine, uSF]
seeds: [4]
lr: 0.25
model: {class_path: bpfree.lab.models.CNN, init_args: {hidden: 32}}
settings:
  DFA: {optimizer: SGD, momentum: 0.5, lr: 0.125}
  Mine: {rule: {class_path: mine.Scaled, init_args: {gain: 2.0}}}
"""
    )
    asked = ["--config", "c.yaml", "--settings.DFA.lr", "0.5", "--settings.Mine.rule.feedback.shared", "false"]
    parsed = ask(["compare", *asked, "--model.activation", "relu"])
    labels = {entry.label: entry for entry in plan_runs(parsed)}
    assert [entry.seed for entry in labels.values()] == [4] * 4
    assert labels["BP"].rule.lr == 0.25
    assert labels["DFA"].rule == rule_settings("DFA", {"DFA": RuleOverrides(optimizer="SGD", momentum=0.5, lr=0.5)})
    mine = labels["Mine"].rule.rule
    assert (type(mine).__name__, mine.gain, mine.feedback) == ("Scaled", 2.0, bpfree.Feedback(shared=False))
    assert labels["uSF"].rule.rule == bpfree.SignSymmetry("uniform")
    model = {"channels": [32, 64, 64], "hidden": 32, "activation": "relu", "negative_slope": 0.01}
    assert labels["BP"].model["init_args"].items() >= model.items()
    # The command in the report asks for the same.
    again = ask(shlex.split(command_line("compare", parsed))[1:])
    assert plan_runs(again) == plan_runs(parsed)


def planned_rules(asked: list[str]) -> dict[str, RuleSettings]:
    """The rules of a comparison's runs by label. The command in its report asks for the same runs."""
    parsed = ask(["compare", *asked])
    assert plan_runs(ask(shlex.split(command_line("compare", parsed))[1:])) == plan_runs(parsed)
    return {entry.label: entry.rule for entry in plan_runs(parsed)}


def test_windows_are_for_direct_rules_and_differ_by_label() -> None:
    asked = ["--rules", "BP", "Shallow", "FA", "DFA", "DFA2", "DFA1", "--seeds", "1", "--window", "4"]
    asked += ["--settings.DFA2.rule", "DFA", "--settings.DFA2.window", "2"]
    asked += ["--settings.DFA1.rule", "DFA", "--settings.DFA1.window", "1"]
    rules = planned_rules(asked)
    assert {label: rule.window for label, rule in rules.items()} == {
        "BP": 1,
        "Shallow": 1,
        "FA": 1,
        "DFA": 4,
        "DFA2": 2,
        "DFA1": 1,
    }
    assert rules["DFA2"].describe()["window"] == 2
    assert "window" not in rules["DFA1"].describe()


@pytest.mark.parametrize(("label", "window"), [("DFA", 0), ("BP", 2), ("FA", 2)])
def test_windows_that_mean_nothing(label: str, window: int) -> None:
    with pytest.raises(SettingsError, match=f"window {window}"):
        rule_settings(label, {label: RuleOverrides(window=window)})


def test_alternating_cuts_are_for_direct_rules_and_differ_by_label() -> None:
    asked = ["--rules", "BP", "Shallow", "FA", "DFA", "DFA3", "DFA1", "--seeds", "1", "--alternate", "2"]
    asked += ["--settings.DFA3.rule", "DFA", "--settings.DFA3.alternate", "3"]
    asked += ["--settings.DFA3.alternate_order", "random", "--settings.DFA1.rule", "DFA"]
    asked += ["--settings.DFA1.alternate", "1", "--settings.DFA1.window", "2"]
    rules = planned_rules(asked)
    assert {label: rule.alternate for label, rule in rules.items()} == {
        "BP": 1,
        "Shallow": 1,
        "FA": 1,
        "DFA": 2,
        "DFA3": 3,
        "DFA1": 1,
    }
    described = rules["DFA3"].describe()
    assert (described["alternate"], described["alternate_order"]) == (3, "random")
    assert "alternate" not in rules["DFA1"].describe()


@pytest.mark.parametrize(
    ("label", "given"), [("DFA", {"alternate": 0}), ("FA", {"alternate": 2}), ("DFA", {"alternate": 2, "window": 3})]
)
def test_alternating_cuts_that_mean_nothing(label: str, given: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match=f"alternate {given['alternate']}"):
        rule_settings(label, {label: RuleOverrides(**given)})


def ask(arguments: list[str]) -> CompareOptions:
    import sys

    sys.path.insert(0, "")
    try:
        parser, commands = make_parser()
        parsed = parser.parse_args(arguments)
        return read_options(commands[parsed.command], parsed[parsed.command], CompareOptions)
    finally:
        sys.path.remove("")


def test_the_command_leaves_out_what_is_usual() -> None:
    assert command_line("compare", CompareOptions()) == "bpfree compare"
    asked = CompareOptions(rules=["BP", "ternary DFA"], seeds=[3], data="mnist", data_dir="/d", model=SMALL)
    words = shlex.split(command_line("compare", asked))
    assert words[words.index("--rules") :][:3] == ["--rules", "BP", "ternary DFA"]
    assert ask(words[1:]).seeds == [3]
    assert command_line("train", TrainOptions(rule="FA", lr=0.5)) == "bpfree train --lr 0.5 --rule FA"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rules": []}, "at least one rule"),
        ({"rules": ["BP", "BP"]}, "only once"),
        ({"seeds": 0}, "at least one seed"),
        ({"seeds": [1, 1]}, "only once"),
        ({"settings": {"DAF": RuleOverrides(lr=1.0)}}, r"--settings\.DAF.*Did you mean 'DFA'"),
    ],
)
def test_options_that_mean_nothing(changes: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        options(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 2, "evaluations": 2}, "--evaluations 2: a run counted in epochs is evaluated after each"),
        ({"epochs": None, "evaluations": 8}, "--evaluations 8: a run counted in epochs"),  # as images are
        ({"taps": []}, "--taps: name a module"),
        ({"error_at": ""}, "--error-at: name a module"),
        ({"threads": 0}, "--threads 0 must be at least 1"),
    ],
)
def test_options_that_would_have_no_effect(changes: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan_runs(options(**changes))


@pytest.mark.parametrize(
    ("label", "message"),
    [("DFFA", "Did you mean 'DFA'"), ("ternary", "Did you mean 'ternary DFA'"), ("X", "--settings.X.rule")],
)
def test_an_unknown_label_gets_the_nearest_one(label: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        rule_settings(label)


def test_a_rule_of_the_library_needs_no_preset() -> None:
    assert rule_settings("SignSymmetry").rule == bpfree.SignSymmetry()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["compare", "--epoch", "3"], 2, "Did you mean '--epochs'?"),
        (["compare", "--text.mesured_on", "test"], 2, "Did you mean '--text.measured_on'?"),
        (["train", "--rule", "DFA", "--optimizer", "SGD"], 2, "--settings.LABEL.optimizer, such as --settings.DFA.o"),
        (["compare", "--weight-decay", "0.1"], 2, "--settings.LABEL.weight_decay, such as --settings.DFA.weight_decay"),
        (["table", "--optimizer", "SGD"], 2, "unrecognized arguments: --optimizer"),
        (["compare", "--settings.DFA.lrr", "1"], 2, "Did you mean 'lr'?"),
        (["compare", "--model.hiden", "[3]"], 2, "Did you mean 'hidden'?"),
        (["compare", "--config", "typo.yaml"], 2, "Did you mean 'batch_size'?"),
        (["compre"], 2, "Did you mean 'compare'?"),
        (["compare", "--rules", "DFFA"], 1, "Did you mean 'DFA'?"),
        (["compare", "--data", "mnits"], 1, "Did you mean 'mnist'?"),
        (["compare", "--epochs", "0"], 1, "--epochs 0 must be at least 1"),
        (["compare", "--data", "tiny", "--data-dir", "nowhere"], 1, "nowhere is not a folder"),
        (["train", "--resume", "--data", "tiny"], 1, "no checkpoint"),
        (["train", "--rule", "DFA", "--settings.DFFA.lr", "1"], 1, "Did you mean 'DFA'?"),
        (["compare", "--data", "tiny", "--model.hidden", "[-4]"], 1, "--model bpfree.lab.models.MLP: Trying to create"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], status: int, message: str, capsys) -> None:
    Path("typo.yaml").write_text("batch_sice: 3\n")
    try:
        ended = main(arguments)
    except SystemExit as exit_:
        ended = exit_.code
    shown = capsys.readouterr().err
    assert message in shown
    assert ended == status
    assert "Traceback" not in shown


def test_train_stops_and_resumes(capsys) -> None:
    asked = ["train", "--data", "tiny", "--rule", "FA", "--epochs", "3", "--batch-size", "32", "--threads", "1"]
    asked += ["--out", "there", "--model.hidden", "[8]"]
    train, end = runs.EpochRecords.on_train_epoch_end, []

    def interrupted(self, trainer, module):
        train(self, trainer, module)
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.EpochRecords, "on_train_epoch_end", interrupted)
        end.append(main(asked))
    assert "with --resume" in capsys.readouterr().err
    end.append(main(asked))
    assert "add --resume" in capsys.readouterr().err
    end.append(main([*asked, "--resume"]))
    shown = capsys.readouterr().out
    assert end == [130, 1, 0]
    assert "FA, seed 0: continued after epoch 1 of 3" in shown
    (record,) = Path("there").glob("*.json")
    assert [epoch["epoch"] for epoch in json.loads(record.read_text())["epochs"]] == [1, 2, 3]
    assert str(record) in shown
    assert Path(record.with_suffix(""), "last.ckpt").is_file()


def test_the_first_seed_has_the_pictures() -> None:
    assert [run.details for run in plan_runs(options(seeds=[5, 0]))] == [True] * 3 + [False] * 3
    assert comparing.FORMAT == "bpfree-comparison/1"
