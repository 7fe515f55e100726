"""The files in experiments/, and that the results beside them are theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bpfree.lab.compare import plan_runs
from bpfree.lab.recipe.reading import content_of, read
from bpfree.lab.settings import plain
from bpfree.lab.tables.cells import plan, works
from support.cli import compare_options

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "experiments").glob("*.yaml"))
RECIPES = [path for path in FILES if "title" in content_of(path)]
COMPARISONS = [path for path in FILES if path not in RECIPES]


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


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_a_recipe_is_what_its_results_are_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "dna" in path.stem:
        pytest.importorskip("torch_geometric")
    monkeypatch.syspath_prepend(ROOT)
    recipe = read(path)
    found: dict[str, Any] = json.loads((ROOT / "results" / f"{path.stem}.json").read_text())
    keys = {work.key for scale in found["tables"] for work in works(plan(recipe, recipe.scale(scale)))}
    assert {record["key"] for record in found["records"]} <= keys
