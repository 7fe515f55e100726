"""Settings chosen on held-out data, and the page of a recipe."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_table
import yaml

from bpfree.lab import data, report
from bpfree.lab.errors import SettingsError
from bpfree.lab.tables import page
from bpfree.lab.tables.options import ReportOptions, TableOptions, TuneOptions
from bpfree.lab.tables.reading import read
from bpfree.lab.tables.table import table
from bpfree.lab.tables.tune import tune
from bpfree.lab.tables.work import Training


@pytest.fixture(autouse=True)
def tiny_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.DATA_SETS, "tiny", lambda folder: tiny.splits())
    monkeypatch.chdir(tmp_path)
    tiny_table.write(tmp_path)


def options(**changes: Any) -> TuneOptions:
    return TuneOptions(**({"name": "tiny.yaml", "validation": 60, "scale": "reduced"} | changes))


def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, int]]:
    """Runs that cost nothing: the score is 100 x the learning rate, but the other way round for BP."""
    ran = []

    def perform(self: Training, *_: Any) -> dict[str, Any]:
        lr = self.settings.rule.lr
        ran.append((self.label, lr, self.options.validation))
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
    assert "2 tries for each of DFA, sum, BP" in tuned.remarks[0]
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
    path = page.report(ReportOptions(name="tiny.yaml", seeds=1))
    shown = Texts(path.read_text())
    mean = next(entry["mean"] for entry in document["tables"]["full"] if entry["row"] == "BP")
    for expected in ("Rules on tiny pictures", f"{mean:.2f} ✓", "50.00 ± 1.50", "The pictures are <made up>."):
        assert expected in shown.text
    assert "<made up>" not in path.read_text()
    assert shown.links == ["tiny-curves.html"]
    curves = Path("results/tiny-curves.html").read_text()
    assert "Learning curves" in curves
    assert "Tap 1" in curves


def test_a_recipe_that_is_not_measured_has_a_page_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "write", lambda *_: pytest.fail("there is nothing to draw"))
    shown = Texts(page.report(ReportOptions(name="tiny.yaml")).read_text())
    assert shown.links == []
    assert "90.00" in shown.text
