"""Recipes that extend others."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from bpfree.lab import data
from bpfree.lab.errors import SettingsError
from bpfree.lab.recipe.locate import find
from bpfree.lab.recipe.reading import content_of, read
from bpfree.lab.recipe.schema import Expected, Recipe
from bpfree.lab.tables.cells import plan, works
from support import tiny_lab, tiny_table


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.DATA_SETS, "tiny", lambda folder: tiny_lab.splits())


def written(folder: Path, name: str = "own", other: object = "tiny.yaml", **parts: Any) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"title": "Mine", "extends": other, **parts}, sort_keys=False))
    return path


def extending(folder: Path, **parts: Any) -> Recipe:
    tiny_table.write(folder)
    return read(written(folder, **parts))


def runs(recipe: Recipe) -> dict[str, str]:
    """The key of every row's first run."""
    return {work.label: work.key for work in works(plan(recipe, recipe.scale("full"))) if work.seed == 0}


def test_what_a_file_does_not_say_is_as_there(tmp_path: Path) -> None:
    own = extending(tmp_path)
    theirs = read(tmp_path / "tiny.yaml")
    assert own == replace(theirs, name="own", path=tmp_path / "own.yaml", title="Mine")


def test_listed_rows_begin_as_there_and_share_its_runs(tmp_path: Path) -> None:
    wider = {"model": {"init_args": {"hidden": [32, 32]}}}
    own = extending(tmp_path, rows={"sum": {"lr": 0.02}, "BP": None, "wider": wider})
    theirs = runs(read(tmp_path / "tiny.yaml"))
    assert list(own.rows) == ["sum", "BP", "wider"]
    assert own.rows["sum"]["lr"] == 0.02
    assert own.expected == {"BP": {"accuracy": Expected(90)}}
    found, settings = runs(own), own.settings("wider", "accuracy", own.scale("full"))
    assert found["BP"] == theirs["BP"]
    assert found["sum"] != theirs["sum"]
    assert settings["model"]["init_args"] == {"hidden": [32, 32], "dropout": 0.2}


def test_settings_of_the_base_are_laid_over_it(tmp_path: Path) -> None:
    own = extending(tmp_path, base={"lr": 0.2, "model": {"init_args": {"dropout": 0}}})
    expected = {"hidden": [16, 16], "dropout": 0}
    assert (own.base["lr"], own.base["epochs"], own.base["model"]["init_args"]) == (0.2, 3, expected)


def test_cells_and_numbers_of_other_rows_and_columns_stay_behind(tmp_path: Path) -> None:
    content = yaml.safe_load(tiny_table.RECIPE)
    content["cells"] = {"DFA/accuracy": {"lr": 0.5}, "BP/accuracy": {"lr": 0.6}, "DFA/training": {"lr": 0.7}}
    tiny_table.write(tmp_path, yaml.safe_dump(content, sort_keys=False))
    parts = {"rows": {"DFA": {}, "new": {}}, "columns": {"accuracy": {"tolerance": 1}, "loss": {"metric": "eval_loss"}}}
    own = read(written(tmp_path, **parts, cells={"new/loss": None}, expected={"new": {"loss": 1.0}}))
    assert own.cells == {"DFA/accuracy": {"lr": 0.5}, "new/loss": None}
    assert own.expected == {"DFA": {"accuracy": Expected(50, 1.5)}, "new": {"loss": Expected(1.0)}}
    assert (own.columns["accuracy"].tolerance, own.columns["loss"].metric) == (1, "eval_loss")


def test_of_scales_those_are_left_that_are_listed(tmp_path: Path) -> None:
    own = extending(tmp_path, scales={"full": {"seeds": 5}})
    assert {name: scale.seeds for name, scale in own.scales.items()} == {"full": 5}


def test_what_a_scale_says_of_rows_that_are_left_out_stays_behind(tmp_path: Path) -> None:
    content = yaml.safe_load(tiny_table.RECIPE)
    content["scales"]["reduced"] |= {"rows": {"BP": {"lr": 0.4}, "sum": {"lr": 0.5}}, "cells": {"BP/accuracy": {}}}
    tiny_table.write(tmp_path, yaml.safe_dump(content, sort_keys=False))
    for scales in ({}, {"scales": {"reduced": {"seeds": 2}}}):
        found = read(written(tmp_path, rows={"sum": {}}, **scales)).scale("reduced")
        assert (found.rows, found.cells) == ({"sum": {"lr": 0.5}}, {})


def test_one_of_the_package_is_extended_by_name(tmp_path: Path) -> None:
    rows = {"norm": {}, "Kolen-Pollack": {"rule": "KolenPollack"}}
    own, theirs = read(written(tmp_path, other="launay2019-table2", rows=rows)), read(find("launay2019-table2"))
    assert own.expected == {"norm": theirs.expected["norm"]}
    norm = [recipe.settings("norm", "test accuracy", recipe.scale("full")) for recipe in (own, theirs)]
    assert norm[0] == norm[1]
    # It begins where the published settings do, with a rule of another class.
    new = own.settings("Kolen-Pollack", "test accuracy", own.scale("full"))
    assert (new["rule"], new["lr"]) == ({"class_path": "KolenPollack"}, theirs.base["lr"])


def test_the_example_in_the_docs_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "tables.md").read_text()
    _, text = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    own, theirs = read(tiny_table.write(tmp_path, text)), read(find("launay2019-table2"))
    known, found = runs(theirs), runs(own)
    assert [row for row in own.rows if found[row] == known.get(row)] == ["norm", "norm+ReLU"]
    assert len(set(found.values())) == len(own.rows) == 4


def test_a_path_begins_at_the_file_that_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_table.write(tmp_path)
    (tmp_path / "below").mkdir()
    written(tmp_path / "below", "middle", "../tiny.yaml", rows={"sum": {}})
    monkeypatch.chdir("/")
    own = read(written(tmp_path, "own", "below/middle.yaml"))
    assert list(own.rows) == ["sum"]


def test_a_tuned_recipe_stands_alone(tmp_path: Path) -> None:
    tiny_table.write(tmp_path)
    path = written(tmp_path, rows={"sum": {}})
    content = content_of(path)
    alone = tmp_path / "alone.yaml"
    alone.write_text(yaml.safe_dump(content))
    assert "extends" not in content
    assert read(alone) == replace(read(path), name="alone", path=alone)


@pytest.mark.parametrize(
    ("other", "parts", "message"),
    [
        ("launay2019-tabel2", {}, "own: extends: recipe 'launay2019-tabel2' is not known.*launay2019-table2"),
        ("nowhere.yaml", {}, "own: extends: .*nowhere.yaml: there is no such file"),
        (["tiny.yaml"], {}, "own: extends must be the name of a recipe, or of its file, not"),
        ("own.yaml", {}, "own: extends: own.yaml extends this file"),
        ("wrong.yaml", {}, "wrong: base: key 'lrr' is not known.*lr"),
        ("empty.yaml", {}, "empty: title is missing"),
        ("tiny.yaml", {"title": None}, "own: title is missing"),
        ("tiny.yaml", {"rows": ["sum"]}, "own: rows must be names with values"),
        ("tiny.yaml", {"rows": {"sum": 3}}, "own: rows: sum must be names with values"),
        ("tiny.yaml", {"base": 3}, "own: base must be names with values"),
        ("tiny.yaml", {"cells": 3}, "own: cells must be names with values"),
        ("tiny.yaml", {"expected": {"DFA": 3}}, "own: expected: DFA must be names with values"),
        ("tiny.yaml", {"rows": {"sum": {"lrr": 1}}}, "own: rows: sum: key 'lrr' is not known"),
        ("tiny.yaml", {"rows": {"sum": {}}, "expected": {"BP": {}}}, "own: expected: key 'BP' is not known.*sum"),
    ],
)  # fmt: skip
def test_mistakes_are_named_where_they_are(tmp_path: Path, other: object, parts: dict[str, Any], message: str) -> None:
    tiny_table.write(tmp_path)
    tiny_table.write(tmp_path, tiny_table.RECIPE.replace("lr: 0.05", "lrr: 0.05", 1), "wrong")
    tiny_table.write(tmp_path, "", "empty")
    with pytest.raises(SettingsError, match=message):
        read(written(tmp_path, other=other, **parts))


def test_files_that_extend_one_another_say_so(tmp_path: Path) -> None:
    written(tmp_path, "first", "second.yaml")
    with pytest.raises(SettingsError, match=r"first: extends: second\.yaml extends this file"):
        read(written(tmp_path, "second", "first.yaml"))
