"""The page of a comparison that was measured before: made of its file, without training."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from bpfree.lab.commands import main
from bpfree.lab.disk.files import write_json
from bpfree.lab.errors import DamageError, SettingsError
from bpfree.lab.report import ReportError
from bpfree.lab.running import runs
from bpfree.lab.tables.command_options import ReportOptions
from bpfree.lab.tables.recipe_page import report
from support import fake_comparison

ROOT = Path(__file__).parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    comparison = fake_comparison.comparison(labels=["BP", "Shallow", "DFA"], seeds=2, epochs=3, n_filters=2)
    return write_json(tmp_path / "comparison.json", comparison)


def test_the_page_has_the_numbers_of_the_file_and_nothing_is_trained(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "run", None)
    shown = io.StringIO()
    page = report(ReportOptions(name=str(path)), Console(file=shown, width=200))
    assert page == path.with_name("report.html")
    assert shown.getvalue().strip() == f"page: {page}"
    text = page.read_text()
    for entry in json.loads(path.read_text())["summary"]:
        assert f"{entry['accuracy_mean']:.2f} ± {entry['accuracy_std']:.2f}" in text


@pytest.mark.parametrize("name", ["depth", "brown-12"])
def test_committed_comparisons_have_a_page(name: str, tmp_path: Path) -> None:
    (tmp_path / "comparison.json").symlink_to(ROOT / "results" / name / "comparison.json")
    assert main(["report", str(tmp_path / "comparison.json")]) == 0
    assert (tmp_path / "report.html").stat().st_size > 5e5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": "reduced"}, r"--scale: .*comparison\.json is a comparison, not a recipe; leave it out"),
        ({"data_dir": "there"}, "--data-dir: "),
        ({"out": "there"}, "--out: "),
    ],
)
def test_options_for_recipes_are_refused(path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        report(ReportOptions(name=str(path), **changes))


def test_a_file_that_is_missing_damaged_or_no_comparison_is_named(path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.json is not a file"):
        report(ReportOptions(name=str(path.with_name("none.json"))))
    path.write_text(path.read_text().replace("BP", "PB", 1))
    with pytest.raises(DamageError, match=r"comparison\.json is damaged"):
        report(ReportOptions(name=str(path)))
    with pytest.raises(ReportError, match="not a comparison the report can read"):
        report(ReportOptions(name=str(write_json(path, {"format": "mine"}))))
    with pytest.raises(ReportError, match="record of one run"):
        report(ReportOptions(name=str(write_json(path, {"label": "BP", "seed": 0, "epochs": []}))))
