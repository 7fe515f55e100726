"""The files in experiments/ and results/: each result is its recipe's, and no run of it is missing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bpfree.lab.commands.compare import plan_runs
from bpfree.lab.data.scenes import SCENES
from bpfree.lab.data.text import TOKENS
from bpfree.lab.disk.files import json_lines
from bpfree.lab.recipe.locate import find
from bpfree.lab.recipe.reading import content_of, read
from bpfree.lab.settings.plain_values import plain
from bpfree.lab.tables import markdown, run_data
from bpfree.lab.tables.cells import plan, works
from bpfree.lab.tables.result import FORMAT, of_format
from support.cli import compare_options

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "experiments").glob("*.yaml"))
RECIPES = [path for path in FILES if "title" in content_of(path)]
COMPARISONS = [path for path in FILES if path not in RECIPES]
TABLES = [path for path in sorted((ROOT / "results").glob("*.json")) if of_format(path, FORMAT)]
PARTLY_RUN = {
    ("fast-brown", "full"),
    ("fast-cifar10", "full"),
    ("language-beyond", "reduced"),
    ("launay2019-table2", "full"),
    ("launay2020-figure2", "full"),
    ("launay2020-figureA2", "full"),
    ("launay2020-figureA3", "reduced"),
    ("launay2020-table1", "reduced"),
    ("launay2020-table3", "full"),
    ("launay2020-table3", "reduced"),
    ("launay2020-table4", "full"),
    ("launay2020-table4", "reduced"),
    ("launay2020-tableA2", "full"),
    ("launay2020-tableA4", "full"),
    ("launay2020-tableA4", "reduced"),
    ("launay2020-tableA5", "reduced"),
}
"""Tables of fewer cells or seeds than their paper's."""
MORE_SEEDS = {"language-beyond", "launay2020-figureA1", "launay2020-table4"}
"""Tables with runs of more seeds than their scales ask for."""


def named(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", COMPARISONS, ids=named)
def test_a_comparison_is_what_its_results_are_of(path: Path) -> None:
    runs = plan_runs(compare_options("--config", str(path)))
    found = json.loads((ROOT / "results" / path.stem / "comparison.json").read_text())
    assert sorted((run["label"], run["seed"]) for run in found["runs"]) == sorted((run.label, run.seed) for run in runs)
    assert plain({run.label: run.rule.describe() for run in runs}) == found["settings"]["rules"]
    then, now = found["settings"]["model"], plain(runs[0].model)
    assert then["class_path"] == now["class_path"]
    assert then["init_args"].items() <= now["init_args"].items()  # others have come since, at their defaults


def recipe_of(table: Path) -> Path:
    """The recipe of a committed table: one in experiments/, or one that comes with bpfree."""
    own = ROOT / "experiments" / f"{table.stem}.yaml"
    return own if own in RECIPES else find(table.stem)


def files_of(data: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The name of a run's data, and their files' checksums; a text has those of its tokens besides."""
    return "text" if TOKENS in data["checksums"] else data["name"], run_data.of_record(data)


@pytest.mark.parametrize("path", TABLES, ids=named)
def test_nothing_is_left_to_run_of_a_committed_table(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "dna" in path.stem:
        pytest.importorskip("torch_geometric")
    monkeypatch.syspath_prepend(ROOT)
    recipe, found = read(recipe_of(path)), json.loads(path.read_text())
    # Whoever has other files has other runs; these are known by the files that they were made with.
    files = dict(files_of(record["data"]) for record in found["records"] if record.get("data"))
    known = run_data.ANY_FOLDER

    def of_folder(name: str, _: str | None, how: Mapping[str, Any]) -> dict[str, str] | None:
        called = Path(how["scene"].folder).name if name in SCENES else name  # a scene is named as its folder
        return files.get(called, {}) if name in known else None

    monkeypatch.setattr(run_data, "of_folder", of_folder)
    records, planned = {record["key"] for record in found["records"]}, set()
    for scale, entries in found["tables"].items():
        keys = {work.key for work in works(plan(recipe, recipe.scale(scale), data_dir="any"))}
        assert bool(keys - records) == ((path.stem, scale) in PARTLY_RUN)
        # A cell's runs beyond the scale's number of seeds are not in this plan.
        cited = {key for entry in entries if entry["seeds"] <= recipe.scale(scale).seeds for key in entry["keys"]}
        assert cited <= keys & records
        planned |= keys
    assert path.stem in MORE_SEEDS or records <= planned


def test_the_page_of_results_is_made_of_the_files_beside_it(tmp_path: Path) -> None:
    for path in (ROOT / "results").glob("*.json"):
        (tmp_path / path.name).symlink_to(path)
    assert markdown.write(tmp_path).read_bytes() == (ROOT / "results" / "RESULTS.md").read_bytes()


def test_committed_results_are_compact() -> None:
    for path in (ROOT / "results").rglob("*.json"):
        text = path.read_text()
        assert text == json_lines(json.loads(text)), f"{path} was not written by bpfree"
    assert not [path for path in committed("results") if path.suffix == ".html"]


def committed(folder: str) -> list[Path]:
    """The files of a folder that git knows; skip where there is no git."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout of git")
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.splitlines()]
