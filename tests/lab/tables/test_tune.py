"""Settings chosen on held-out data, and the page of a recipe."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.storages import RDBStorage
from rich.console import Console

from bpfree.lab import data, report
from bpfree.lab.cli import main
from bpfree.lab.errors import DataError, LedgerError, RunError, SettingsError
from bpfree.lab.recipe.reading import read
from bpfree.lab.tables import recipe_page
from bpfree.lab.tables import tune as tuning
from bpfree.lab.tables.command_options import ReportOptions, TableOptions, TuneOptions
from bpfree.lab.tables.table import table
from bpfree.lab.tables.tune import tune
from bpfree.lab.tables.work import Training
from support import tiny_lab, tiny_table
from support.ledger_runs import away


@pytest.fixture(autouse=True)
def tiny_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.DATA_SETS, "tiny", lambda folder: tiny_lab.splits())
    monkeypatch.chdir(tmp_path)
    tiny_table.write(tmp_path)


def options(**changes: Any) -> TuneOptions:
    return TuneOptions(**({"name": "tiny.yaml", "validation": 60, "scale": "reduced"} | changes))


def changed(**parts: Any) -> None:
    """The recipe with other parts."""
    Path("tiny.yaml").write_text(yaml.safe_dump(yaml.safe_load(tiny_table.RECIPE) | parts, sort_keys=False))


def scored(monkeypatch: pytest.MonkeyPatch, failing: type[Exception] | None = None) -> list[tuple[str, float, int]]:
    """Runs that cost nothing: the score is 100 x the learning rate, but the other way round for BP. Or all fail."""
    ran = []

    def perform(self: Training, *_: Any) -> dict[str, Any]:
        lr = self.settings.rule.lr
        ran.append((self.label, lr, self.options.validation))
        if failing is not None:
            raise failing(f"{self.label} went wrong")
        return {"label": self.label, "seed": self.seed, "accuracy": 100 * (1 - lr if self.label == "BP" else lr)}

    monkeypatch.setattr(Training, "perform", perform)
    return ran


def test_a_grid_tries_every_value_for_every_rule_on_held_out_data(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = scored(monkeypatch)
    path = tune(options())
    assert sorted(ran) == [(label, lr, 60) for label in ("BP", "DFA", "sum") for lr in (0.05, 0.2)]
    tuned = read(path)
    assert {row: settings["lr"] for row, settings in tuned.rows.items()} == {"DFA": 0.2, "sum": 0.2, "BP": 0.05}
    assert tuned.rows["sum"]["rule"] == {"init_args": {"reduction": "sum"}}
    assert (tuned.search, tuned.expected) == ({}, read(Path("tiny.yaml")).expected)
    assert "2 tries of lr for each of DFA, sum, BP" in tuned.remarks[0]
    tune(options())
    assert len(ran) == 6  # asked again it costs nothing


def test_tpe_gives_every_rule_as_many_tries_and_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    content = yaml.safe_load(tiny_table.RECIPE)
    content["search"] = {"lr": {"low": 0.01, "high": 1.0, "log": True}, "rule.reduction": ["mean", "sum"]}
    del content["rows"]["BP"], content["expected"]["BP"]
    Path("tiny.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    ran = scored(monkeypatch)
    tune(options(sampler="tpe", trials=2))
    path = tune(options(sampler="tpe", trials=4, to="there/chosen.yaml"))
    assert [[label for label, *_ in ran].count(name) for name in ("DFA", "sum")] == [4, 4]
    assert all(0.01 <= lr <= 1 for _, lr, _ in ran)
    assert len({lr for label, lr, _ in ran if label == "DFA"}) == 4  # none is tried twice
    best = max(lr for label, lr, _ in ran if label == "DFA")
    assert read(path).rows["DFA"]["lr"] == best
    assert path == Path("there/chosen.yaml")


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_a_row_is_tried_with_what_its_rule_takes(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = scored(monkeypatch)
    rows = {"DFA": {}, "slow": {"momentum": 0.9}, "BP": {"rule": "BP", "optimizer": "Adam"}}
    changed(rows=rows, expected={}, search={"lr": [0.05, 0.2], "rule.feedback.shared": [True, False]})
    path = tune(options(sampler=sampler, trials=4 if sampler == "tpe" else None))
    # A grid has 2 x 2 combinations, and for backpropagation, which has no feedback matrices, 2.
    of_bp = 4 if sampler == "tpe" else 2
    assert [[label for label, *_ in ran].count(row) for row in rows] == [4, 4, of_bp]
    tuned = read(path)
    assert "init_args" not in tuned.rows["BP"]["rule"]
    assert list(tuned.rows["slow"]["rule"]["init_args"]) == ["feedback.shared"]
    assert tuned.remarks[0].endswith(
        f": 4 tries of lr and rule.feedback.shared for each of DFA, slow; {of_bp} tries of lr for each of BP."
    )


def test_settings_for_text_are_chosen_on_its_validation_file(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def perform(self: Training, *_: Any) -> dict[str, Any]:
        ran.append((self.label, self.settings.rule.lr, self.options.validation, self.options.text.measured_on))
        return {"label": self.label, "seed": self.seed, "perplexity": 100 * self.settings.rule.lr}

    monkeypatch.setattr(Training, "perform", perform)
    base = {"data": "text", "steps": 8}
    changed(base=base, rows={"BP": {"rule": "BP"}}, columns={"perplexity": {}}, expected={}, scales={"full": {}})
    tuned = read(tune(options(scale="full")))
    assert sorted(ran) == [("BP", lr, 0, "validation") for lr in (0.05, 0.2)]
    assert tuned.rows["BP"]["lr"] == 0.05  # the lower perplexity
    assert "at scale full on the validation file, one seed" in tuned.remarks[0]


def test_settings_for_scenes_are_chosen_on_their_views_for_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def perform(self: Training, *_: Any) -> dict[str, Any]:
        ran.append((self.settings.rule.lr, self.options.validation, self.options.scene.measured_on))
        return {"label": self.label, "seed": self.seed, "psnr": 100 * self.settings.rule.lr}

    monkeypatch.setattr(Training, "perform", perform)
    base = {"data": "blender", "scene": {"measured_on": "test"}, "steps": 8, "evaluations": 1}
    changed(base=base, rows={"BP": {"rule": "BP"}}, columns={"psnr": {}}, expected={}, scales={"full": {}})
    tuned = read(tune(options(scale="full")))
    assert sorted(ran) == [(lr, 0, "validation") for lr in (0.05, 0.2)]
    assert tuned.rows["BP"]["lr"] == 0.2
    assert "at scale full on the validation views, one seed" in tuned.remarks[0]


def test_a_row_that_takes_nothing_of_the_search_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = scored(monkeypatch)
    changed(search={"rule.reduction": ["mean", "sum"]})
    before = read(Path("tiny.yaml")).rows["BP"]
    assert read(tune(options())).rows["BP"] == before
    assert {label for label, *_ in ran} == {"DFA", "sum"}
    with pytest.raises(SettingsError, match=r"takes what is searched: rule\.reduction"):
        tune(options(cell=["BP"]))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"search": {"rule.reductoin": ["sum"]}},
            r"rule\.reductoin is an argument of no row's.*mean 'rule\.reduction'",
        ),
        ({"search": {"model.widths": [1]}}, r"model\.widths is an argument of no row's"),
        ({"search": {"within.step": [1]}}, r"within\.step is an argument of no row's"),
        ({"search": {"epochs": [1, 2]}}, "epochs is set by scale reduced"),
        ({"base": {"data": "cora"}, "rows": {"BP": {"rule": "BP"}}}, "cora has none.*best_validation_accuracy"),
        ({"base": {"data": "cora-links"}, "rows": {"BP": {"rule": "BP"}}}, "cora-links has none.*validation_auc"),
        (
            {"base": {"data": "text", "text": {"measured_on": "test"}}, "rows": {"BP": {"rule": "BP"}}},
            "measured_on: test would choose settings on the test file",
        ),
        ({"base": {"data": "llff"}, "rows": {"BP": {"rule": "BP"}}}, "scenes of llff have views for the test alone"),
    ],
)
def test_what_could_not_be_tuned_is_told_before_any_try(
    parts: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = scored(monkeypatch)
    scales = {"reduced": {"seeds": 1, "cut": "all"} | ({"epochs": 1} if "search" in parts else {})}
    changed(scales=scales, expected={}, **parts)
    with pytest.raises(SettingsError, match=message):
        tune(options())
    assert ran == []


def test_an_argument_that_the_scale_sets_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch)
    scales = {"reduced": {"cut": "narrow", "model": {"init_args": {"hidden": [8]}}}, "full": {}}
    changed(scales=scales, search={"model.hidden": [[8], [16]]})
    with pytest.raises(SettingsError, match=r"model\.hidden is set by scale reduced"):
        tune(options())
    assert tune(options(scale="full")).is_file()
    changed(scales=scales, search={"model.dropout": [0.0, 0.1]})
    assert tune(options()).is_file()


def test_tries_of_another_recipe_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = scored(monkeypatch)
    asked = options(sampler="tpe", trials=2, cell=["DFA"])
    changed(search={"lr": {"low": 0.01, "high": 0.1}})
    tune(asked)
    tune(asked)
    assert len(ran) == 2
    changed(search={"lr": {"low": 1.0, "high": 9.0}})
    assert 1 <= read(tune(asked)).rows["DFA"]["lr"] <= 9
    assert len(ran) == 4
    changed(search={"lr": {"low": 1.0, "high": 9.0}}, scales={"reduced": {"cut": "little", "epochs": 2}})
    tune(asked)
    assert len(ran) == 6
    # What is searched is not what a row had before.
    base = yaml.safe_load(tiny_table.RECIPE)["base"] | {"lr": 0.5}
    changed(search={"lr": {"low": 1.0, "high": 9.0}}, scales={"reduced": {"cut": "little", "epochs": 2}}, base=base)
    tune(asked)
    assert len(ran) == 6


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_tries_of_other_code_count_and_are_told(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran, shown = scored(monkeypatch), io.StringIO()
    asked = options(sampler=sampler, trials=2, cell=["DFA"])
    tune(asked, Console(file=shown, width=200))
    assert "another state" not in shown.getvalue()
    monkeypatch.setattr(tuning, "source", lambda: "other")
    tune(asked, Console(file=shown, width=200))
    assert "2 of 2 runs were measured with another state of bpfree's code (another --ledger begins anew)" in (
        shown.getvalue()
    )
    assert len(ran) == 2


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_whatever_goes_wrong_in_a_try_it_has_been_one_and_is_told(
    sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = scored(monkeypatch, failing=MemoryError)
    with pytest.raises(RunError, match=r"(?s)DFA: none of 2 tries succeeded.*MemoryError: DFA went wrong$"):
        tune(options(sampler=sampler, trials=2))
    assert [label for label, *_ in ran].count("DFA") == 2


def test_without_data_there_is_no_try(monkeypatch: pytest.MonkeyPatch) -> None:
    ran, asked = scored(monkeypatch), options(sampler="tpe", trials=2, cell=["DFA"])

    def missing(folder: Path | None) -> None:
        raise DataError("the files are missing")

    with monkeypatch.context() as patch:
        patch.setattr(Training, "data", lambda self, folder: missing(folder))
        with pytest.raises(DataError, match="missing"):
            tune(asked)
    assert tune(asked).is_file()
    assert len(ran) == 2


@pytest.mark.parametrize("name", ["create_new_study", "_get_trials"])
def test_tpe_waits_for_a_database_that_restarts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = scored(monkeypatch)
    pauses = away(RDBStorage, monkeypatch, name, 3)
    tune(options(sampler="tpe", trials=1, cell=["DFA"]))
    assert (len(ran), len(pauses)) == (1, 3)


def test_a_database_that_goes_away_during_a_try_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch)
    away(RDBStorage, monkeypatch, "_create_new_trial", 100)
    with pytest.raises(LedgerError, match=r"database does not answer .*gone away.*repeat the command"):
        tune(options(sampler="tpe", trials=1, cell=["DFA"]))


def test_options_that_a_search_has_no_use_for(capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--seeds", "3"], ["--out", "there"]):
        with pytest.raises(SystemExit):
            main(["tune", "tiny.yaml", *option])
        assert f"unrecognized arguments: {option[0]}" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="--trials 0 must be at least 1"):
        tune(options(sampler="tpe", trials=0))
    with pytest.raises(SettingsError, match="--trials 3: a grid tries all combinations"):
        tune(options(trials=3))


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("search: {}", "search is missing"),
        ("search: {lrr: [1]}", "search: lrr is not known.*Did you mean 'lr'"),
        ("search: {rule: [BP]}", "arguments are named with their class"),
        ("search: {lr: {low: 1, hihg: 2}}", "key 'hihg' is not known.*Did you mean 'high'"),
        ("search: {lr: {low: 1}}", "needs low and high"),
        ("search: {lr: 3}", "must be a list"),
        ("search: {lr: {low: 2, high: 1}}", "in this order"),
        ("search: {lr: {low: 0, high: 1, log: true}}", "above 0 with log"),
        ("search: {lr: {low: x, high: 1}}", "must be numbers"),
        ("search: {lr: {low: 0.1, high: .inf}}", "search: lr: low and high must be numbers"),
        ("search: {lr: {low: false, high: true}}", "search: lr: low and high must be numbers"),
        ("search: {lr: {low: 1, high: 2, log: 'no'}}", "search: lr: log must be true or false, not 'no'"),
        ("search: {lr: {low: 0.1, high: 1, step: 0}}", "search: lr: step must be a number above 0"),
        ("search: {epochs: {low: 1, high: 9, step: 0.5}}", "search: epochs: step must be .*, not 0.5"),
        ("search: {lr: {low: 0.1, high: 1, step: 0.1, log: true}}", "search: lr: step has no meaning with log: true"),
        ("search: {lr: {low: 1, high: 2}}", "a grid needs a list"),
    ],
)
def test_a_search_that_means_nothing(search: str, message: str) -> None:
    tiny_table.write(Path(), tiny_table.RECIPE.replace("search: {lr: [0.05, 0.2]}", search))
    with pytest.raises(SettingsError, match=message):
        tune(options())


def test_settings_are_not_chosen_on_test_data() -> None:
    with pytest.raises(SettingsError, match="held-out"):
        tune(options(validation=0))


class Texts(HTMLParser):
    """The text of a page's cells, and its links."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.links = "", list[str | None]()
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.text += f" {data.strip()}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if tag == "a" and name == "href"]


def test_the_page_of_a_recipe() -> None:
    document = table(TableOptions(name="tiny.yaml", seeds=1, cell=["DFA", "BP"]))
    path = recipe_page.report(ReportOptions(name="tiny.yaml", seeds=1))
    shown = Texts(path.read_text())
    mean = next(entry["mean"] for entry in document["tables"]["full"] if entry["row"] == "BP")
    for expected in ("Rules on tiny pictures", f"{mean:.2f} ✓", "50.00 ± 1.50", "The pictures are <made up>."):
        assert expected in shown.text
    assert "<made up>" not in path.read_text()
    assert shown.links == ["tiny-curves.html"]
    curves = Path("results/tiny-curves.html").read_text()
    assert "Learning curves" in curves
    assert "Tap 2" in curves  # the non-linearity, behind Flatten and Linear


def test_a_recipe_that_is_not_measured_has_a_page_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "write", lambda *_: pytest.fail("there is nothing to draw"))
    shown = Texts(recipe_page.report(ReportOptions(name="tiny.yaml")).read_text())
    assert shown.links == []
    assert "90.00" in shown.text
