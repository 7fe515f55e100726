"""Recipes: what a file means, and what is said of mistakes in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import bpfree
from bpfree.lab import data
from bpfree.lab.data import Images, Normalization, Splits
from bpfree.lab.errors import DataError, SettingsError
from bpfree.lab.recipe.locate import find, names
from bpfree.lab.recipe.merging import merged
from bpfree.lab.recipe.reading import read
from bpfree.lab.recipe.schema import Chart, Column, Expected
from bpfree.lab.running.runs import learner
from bpfree.lab.tables.cells import plan, works
from bpfree.lab.tables.metrics import value
from bpfree.lab.tables.work import works as of_settings
from support import tiny_lab, tiny_scene, tiny_table


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.DATA_SETS, "tiny", lambda folder: tiny_lab.splits())


def planned(folder: Path, text: str = tiny_table.RECIPE, scale: str = "full"):
    recipe = read(tiny_table.write(folder, text))
    return plan(recipe, recipe.scale(scale))


@pytest.mark.parametrize(
    ("layers", "result"),
    [
        ([{"lr": 1, "epochs": 2}, {"lr": 3}], {"lr": 3, "epochs": 2}),
        ([{"rule": "DFA"}, {"rule": "BP"}], {"rule": {"class_path": "BP"}}),
        (
            [{"rule": "DFA"}, {"rule": {"init_args": {"feedback": {"modes": 1}}}}],
            {"rule": {"class_path": "DFA", "init_args": {"feedback": {"modes": 1}}}},
        ),
        (
            [{"rule": {"class_path": "DFA", "init_args": {"a": 1, "b": 2}}}, {"rule": {"init_args": {"b": 3}}}],
            {"rule": {"class_path": "DFA", "init_args": {"a": 1, "b": 3}}},
        ),
        # Another class has other arguments.
        ([{"rule": {"class_path": "DFA", "init_args": {"a": 1}}}, {"rule": "BP"}], {"rule": {"class_path": "BP"}}),
        ([{"taps": ["a"]}, {"taps": ["b"]}], {"taps": ["b"]}),
        ([{"model": "MLP"}, {"model": None}], {"model": None}),
    ],
)
def test_particular_settings_lie_over_general_ones(layers: list[dict], result: dict) -> None:
    assert merged(*layers) == result


def test_cells_inherit_and_columns_share_runs(tmp_path: Path) -> None:
    cells = planned(tmp_path)
    assert [cell.name for cell in cells][:5] == [
        "DFA/accuracy", "DFA/training", "DFA/cosine 1", "DFA/cosine 2", "sum/accuracy",
    ]  # fmt: skip
    assert (cells[0].expected, cells[4].expected, cells[8].expected) == (Expected(50, 1.5), None, Expected(90))
    found = works(cells)
    # Three rows and two seeds, whatever the number of columns; every row before any second seed.
    assert [(work.label, work.seed) for work in found] == [
        ("DFA", 0), ("sum", 0), ("BP", 0), ("DFA", 1), ("sum", 1), ("BP", 1),
    ]  # fmt: skip
    summed, bp = found[1].settings, found[2].settings
    assert (summed.rule.rule.reduction, summed.rule.lr, summed.rule.optimizer) == ("sum", 0.01, "SGD")
    assert (bp.rule.lr, bp.rule.optimizer, bp.epochs, bp.threads) == (0.05, "Adam", 3, 1)
    assert bp.model["init_args"]["hidden"] == [16, 16]
    assert [work.settings.epochs for work in works(planned(tmp_path, scale="reduced"))] == [1, 1, 1]


def test_columns_may_differ_in_what_is_run_and_cells_may_be_empty(tmp_path: Path) -> None:
    content = yaml.safe_load(tiny_table.RECIPE)
    content["columns"] = {"DFA": {}, "BP": {"rule": "BP"}}
    content["rows"] = {"wide": {}, "deep": {"epochs": 2}}
    content["cells"] = {"deep/BP": None, "wide/BP": {"lr": 0.5}}
    content["expected"] = {}
    cells = planned(tmp_path, yaml.safe_dump(content, sort_keys=False))
    assert [cell.name for cell in cells] == ["wide/DFA", "wide/BP", "deep/DFA"]
    assert [work.label for work in works(cells)][:3] == ["wide / DFA", "wide / BP", "deep / DFA"][:3]
    assert cells[1].works[0].settings.rule.lr == 0.5


def test_a_scale_may_differ_by_row_column_and_cell(tmp_path: Path) -> None:
    content = yaml.safe_load(tiny_table.RECIPE)
    content["columns"] = {"short": {"lr": 0.01}, "long": {"lr": 0.02}}
    content["rows"] = {"DFA": {}, "BP": {"rule": "BP"}}
    content["expected"] = {}
    content["scales"] = {
        "full": {},
        "reduced": {
            "cut": "all",
            "epochs": 1,
            "lr": 0.3,
            "rows": {"BP": {"lr": 0.4, "batch_size": 7}},
            "columns": {"long": {"epochs": 2, "lr": 0.5}},
            "cells": {"BP/long": {"lr": 0.6}},
        },
    }
    text = yaml.safe_dump(content, sort_keys=False)
    found = {cell.name: cell.works[0].settings for cell in planned(tmp_path, text, scale="reduced")}
    assert {name: (run.rule.lr, run.epochs) for name, run in found.items()} == {
        "DFA/short": (0.3, 1),
        "DFA/long": (0.5, 2),
        "BP/short": (0.4, 1),
        "BP/long": (0.6, 2),
    }
    assert [run.batch_size == 7 for run in found.values()] == [False, False, True, True]
    full = {cell.name: cell.works[0].settings.rule.lr for cell in planned(tmp_path, text)}
    assert full == {"DFA/short": 0.01, "DFA/long": 0.02, "BP/short": 0.01, "BP/long": 0.02}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"rows": {"PB": {"lr": 1}}}, "scales: reduced: rows: key 'PB' is not known.*BP"),
        ({"columns": {"acuracy": {"lr": 1}}}, "scales: reduced: columns: key 'acuracy' is not known.*accuracy"),
        ({"cells": {"BP": {"lr": 1}}}, "scales: reduced: cells: key 'BP' is not known.*BP/accuracy"),
        ({"rows": {"BP": {"lrr": 1}}}, "scales: reduced: rows: BP: key 'lrr' is not known.*lr"),
        ({"rows": ["BP"]}, "scales: reduced: rows must be names with values"),
        ({"cells": {"BP/accuracy": 3}}, "scales: reduced: cells: BP/accuracy must be names with values"),
    ],
)
def test_mistakes_in_a_part_of_a_scale_are_named(tmp_path: Path, part: dict[str, Any], message: str) -> None:
    content = yaml.safe_load(tiny_table.RECIPE)
    content["scales"]["reduced"] |= part
    with pytest.raises(SettingsError, match=message):
        planned(tmp_path, yaml.safe_dump(content, sort_keys=False))


def keys(folder: Path, **changes: object) -> list[str]:
    content = yaml.safe_load(tiny_table.RECIPE)
    content["base"] |= changes
    return [work.key for work in works(planned(folder, yaml.safe_dump(content, sort_keys=False)))]


def test_a_key_tells_runs_apart_and_nothing_else(tmp_path: Path) -> None:
    usual = keys(tmp_path)
    assert len(set(usual)) == 6
    assert keys(tmp_path, window=1) == keys(tmp_path, threads=1) == keys(tmp_path, alternate=1) == usual  # defaults
    model = {"class_path": "bpfree.lab.models.MLP", "init_args": {"hidden": [16, 16], "dropout": 0.2}}
    assert keys(tmp_path, model=model) == usual
    assert keys(tmp_path, model=model | {"init_args": {"activation": "tanh", **model["init_args"]}}) == usual
    changed: list[dict] = [
        {"lr": 0.5}, {"epochs": 4}, {"threads": 2}, {"validation": 10}, {"momentum": 0.5}, {"data": "digits"},
        {"batch_size": 16}, {"taps": ["2"]}, {"model": "MLP"}, {"schedule": "constant"}, {"steps": 16, "epochs": None},
    ]  # fmt: skip
    found = [keys(tmp_path, **change)[0] for change in changed]
    assert len({*found, usual[0]}) == len(found) + 1


def test_a_key_knows_the_code_of_a_rule_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import dataclasses, bpfree\n@dataclasses.dataclass(frozen=True)\nclass Sketch(bpfree.DFA):\n    pass\n"
    (tmp_path / "sketched_rule.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    before = keys(tmp_path, rule="sketched_rule.Sketch")
    (tmp_path / "sketched_rule.py").write_text(source + "# another thought\n")
    assert keys(tmp_path, rule="sketched_rule.Sketch")[0] != before[0]


LAYERWISE = """
import dataclasses
import bpfree
import {base}

@dataclasses.dataclass(frozen=True)
class Sketch({base}.{kind}):
    pass
"""


def test_a_key_knows_the_code_of_what_carries_signals_and_of_ancestors(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    files = {
        "sketch_within": LAYERWISE.format(base="bpfree", kind="FA"),
        "sketch_ancestor": LAYERWISE.format(base="bpfree", kind="DFA"),
        "sketch_rule": LAYERWISE.format(base="sketch_ancestor", kind="Sketch"),
        "sketch_plan": "from bpfree.lab.models import MLP\nclass Planned(MLP):\n    pass\n",
        "sketch_model": "from sketch_plan import Planned\nclass Net(Planned):\n    pass\n",
    }
    for name, source in files.items():
        (tmp_path / f"{name}.py").write_text(source)
    own = {"within": "sketch_within.Sketch", "rule": "sketch_rule.Sketch", "model": "sketch_model.Net"}
    seen = {keys(tmp_path, **own)[0]}
    for number, (name, source) in enumerate(files.items(), start=2):
        (tmp_path / f"{name}.py").write_text(f"{source}# another thought\n")
        seen.add(keys(tmp_path, **own)[0])
        assert len(seen) == number, f"{name}.py changed, and no key"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title:", "titel:", "'titel' is not known.*Did you mean 'title'"),
        ("batch_size:", "batchsize:", "base: key 'batchsize' is not known.*Did you mean 'batch_size'"),
        ("metric: train", "metrik: train", "training: key 'metrik' is not known.*Did you mean 'metric'"),
        ("train_accuracy", "train_acuracy", "metric 'train_acuracy' is not known.*Did you mean 'train_accuracy'"),
        ("alignment: 1", "aligment: 1", "metric must be a name or"),
        (
            "init_args: {reduction",
            "init_arg: {reduction",
            "rows: sum: rule: key 'init_arg' is not known.*Did you mean 'init_args'",
        ),
        (
            "{reduction: sum}",
            "{reducton: sum}",
            "tiny: sum: rule: DFA has no argument 'reducton'. Did you mean 'reduction'",
        ),
        ("class_path: DFA", "class_path: DFAA", "tiny: DFA: rule: DFAA is no rule of bpfree. Did you mean 'DFA'"),
        ("class_path: MLP", "class_path: MPL", "tiny: DFA: model: MPL is no network of bpfree. Did you mean 'MLP'"),
        ("epochs: 3", "epochs: many", "tiny: DFA: epochs: a whole number is needed, not many"),
        ("  DFA: {accuracy", "  DAF: {accuracy", "expected: key 'DAF' is not known.*Did you mean 'DFA'"),
        ("{accuracy: 90}", "{acuracy: 90}", "expected: BP: key 'acuracy' is not known.*Did you mean 'accuracy'"),
        ("accuracy: 90", "accuracy: good", r"must be a mean, or \[mean, standard deviation\]"),
        (", cut: 1 of 3 epochs", "", "scales: reduced: say under cut"),
        ("rows:", "cells:", "rows is missing"),
        (
            "rule: BP",
            "function: support.tiny_table.memory",
            "optimizer has no meaning|batch_size has no meaning|data has no",
        ),
        ("title: Rules", "title: {Rules", "cannot be read as YAML"),
        ("deviations: [The pictures are <made up>.]", "deviations: A sentence.", "must be a list of sentences"),
        ("tolerance: 100", "tolerance: 2 %", "tolerance must be a number"),
        ("metric: train_accuracy", "metric: 3", "metric must be a name"),
        ("seeds: 2", "seeds: 2.5", "seeds must be a number from 1 on"),
        ("seeds: 2", "seeds: two", "seeds must be a number from 1 on"),
        ("seeds: 2", "seeds: true", "scales: full: seeds must be a number from 1 on, not True"),
        ("tolerance: 100", "tolerance: -2", "columns: accuracy: tolerance must be a number from 0 on, not -2"),
        ("tolerance: 100", "tolerance: .nan", "columns: accuracy: tolerance must be a number from 0 on, not nan"),
        ("tolerance: 100", "tolerance: 1, above: 'no'", "columns: accuracy: above must be true or false, not 'no'"),
        ("accuracy: 90", "accuracy: .nan", r"expected: BP: accuracy must be a mean, or \[mean, standard deviation\]"),
        ("[50, 1.5]", "[50, .inf]", "expected: DFA: accuracy must be a mean"),
        ("[50, 1.5]", "[50, -1.5]", "expected: DFA: accuracy must be a mean"),
        ("  sum: {rule", "  DFA: {rule", "tiny: rows: DFA is given twice"),
        ("  epochs: 3", "  epochs: 3\n  epochs: 4", "tiny: base: epochs is given twice"),
        ("cosine 1: 2}", "cosine 1: 2, cosine 1: 3}", "tiny: expected: DFA: cosine 1 is given twice"),
        ("  DFA: {}", "  1: {}\n  '1': {}", "tiny: rows: 1 is given twice"),
        ("  DFA: {}", "  no: {}", "tiny: rows: no means true or false in YAML; write it in quotes"),
        ("  training: {", "  Yes: {", "tiny: columns: Yes means true or false"),
        ("  DFA: {}", "  ~: {}", "tiny: rows: ~ means nothing in YAML"),
    ],
)
def test_mistakes_in_a_recipe_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in tiny_table.RECIPE
    with pytest.raises(SettingsError, match=message):
        planned(tmp_path, tiny_table.RECIPE.replace(old, new))


def test_columns_are_names_with_values(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="columns must be names with values"):
        read(tiny_table.write(tmp_path, "title: T\ncolumns: [accuracy]\nrows: {a: {}}\n"))


def test_names_may_be_written_as_numbers_and_a_rule_by_its_arguments_alone(tmp_path: Path) -> None:
    text = tiny_table.RECIPE.replace("  DFA: {accuracy", "  1: {accuracy").replace("  DFA: {}", "  1: {}")
    text = text.replace("  rule: {class_path: DFA}\n", "")
    recipe = read(tiny_table.write(tmp_path, text))
    assert recipe.expected["1"]["accuracy"].mean == 50
    cells = {cell.name: cell for cell in plan(recipe, recipe.scale("full"))}
    assert cells["sum/accuracy"].works[0].settings.rule.rule == bpfree.DFA(reduction="sum")


CHART = """
charts:
  Curve: {columns: [cosine 1], x: size, y: cosine, log: true}
"""
NUMBERED = (
    tiny_table.RECIPE.replace("  DFA: {}", '  "1": {}')
    .replace("  sum:", '  "2.5":')
    .replace("  BP: {rule", '  "8": {rule')
)
NUMBERED = (
    NUMBERED.replace("  DFA: {accuracy", '  "1": {accuracy').replace("  BP: {accuracy", '  "8": {accuracy') + CHART
)


def test_rows_that_are_numbers_can_be_drawn(tmp_path: Path) -> None:
    recipe = read(tiny_table.write(tmp_path, NUMBERED))
    assert recipe.charts == {"Curve": Chart(["cosine 1"], "size", "cosine", log=True)}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[cosine 1], x", "[cosine 3], x", "charts: Curve: column 'cosine 3' is not known.*Did you mean 'cosine"),
        ("log: true", "logarithmic: true", "charts: Curve: key 'logarithmic' is not known.*'log'"),
        ("x: size, ", "", "charts: Curve: x is missing"),
        ('  "2.5":', "  two:", "rows are places on its axis, and row 'two' is not a number above 0"),
        ('  "2.5":', '  "0":', "row '0' is not a number above 0"),
        ("log: true", "log: 'no'", "charts: Curve: log must be true or false, not 'no'"),
        ("[cosine 1], x", "cosine 1, x", "charts: Curve: columns must be a list of 6 at most"),
        ("[cosine 1], x", "[a, b, c, d, e, f, g], x", "charts: Curve: columns must be a list of 6 at most"),
        ('  "2.5":', '  "inf":', "row 'inf' is not a number above 0"),
    ],
)
def test_mistakes_in_a_chart_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in NUMBERED
    with pytest.raises(SettingsError, match=message):
        planned(tmp_path, NUMBERED.replace(old, new))


@pytest.mark.parametrize("row", ["two", "nan", "-inf"])
def test_a_chart_without_logarithm_has_numbers_for_rows_too(tmp_path: Path, row: str) -> None:
    text = NUMBERED.replace(", log: true", "")
    read(tiny_table.write(tmp_path, text.replace('  "2.5":', '  "-2.5":')))
    with pytest.raises(SettingsError, match=f"charts: Curve: rows are places .* row '{row}' is not a number"):
        read(tiny_table.write(tmp_path, text.replace('  "2.5":', f'  "{row}":')))


def test_a_part_may_be_merged_into_several(tmp_path: Path) -> None:
    text = tiny_table.RECIPE.replace("  DFA: {}", "  DFA: &a {lr: 0.5}")
    text = text.replace("BP: {rule: BP,", "BP: {<<: *a, rule: BP,")
    assert read(tiny_table.write(tmp_path, text)).rows["BP"] == {"lr": 0.5, "rule": "BP", "optimizer": "Adam"}


def test_an_alignment_that_is_never_measured_is_told_before_any_run(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cosine 1: an alignment is asked for that is never measured"):
        planned(tmp_path, tiny_table.RECIPE.replace("epochs: 3", "epochs: 3\n  alignment: never", 1))


def test_the_best_epoch_is_the_one_of_the_best_evaluation() -> None:
    epochs = [{"eval_accuracy": 40.0, "eval_perplexity": 9.0}, {"eval_accuracy": 60.0, "eval_perplexity": 5.0}]
    record = {"epochs": [*epochs, {"eval_accuracy": 50.0, "eval_perplexity": 7.0}], "accuracy": 50.0, "perplexity": 7.0}
    assert value(record, Column("a", "best_accuracy"), "accuracy") == 60.0
    language = [40.0, 30.0, None, 30.0, 35.0]  # None: a loss that had exploded
    text = {"epochs": [{"eval_perplexity": found, "step": 10 * n} for n, found in enumerate(language, start=1)]}
    assert value(text, Column("a", "best_perplexity"), "perplexity") == 30.0
    assert value(text, Column("a", "best_step"), "perplexity") == 20
    lost = {"epochs": [{"eval_perplexity": None, "step": 10}]}
    assert [value(lost, Column("a", f"best_{what}"), "perplexity") for what in ("perplexity", "step")] == [None, None]
    chosen = [{"validation_auc": 0.7, "eval_auc": 0.9}, {"validation_auc": 0.8, "eval_auc": 0.6}]
    assert value({"epochs": chosen}, Column("a", "auc_at_best_validation"), "auc") == 0.6
    assert value(record, Column("a", "best_perplexity"), "perplexity") == 5.0
    assert value(record, Column("a"), "accuracy") == 50.0


def test_a_scale_and_a_cell_are_asked_for_by_name(tmp_path: Path) -> None:
    recipe = read(tiny_table.write(tmp_path))
    with pytest.raises(SettingsError, match=r"--scale redused is not known\. Did you mean 'reduced'"):
        recipe.scale("redused")
    with pytest.raises(SettingsError, match=r"no such cell\. Did you mean 'BP/training'"):
        plan(recipe, recipe.scale("full"), chosen=["BP/trainin"])
    with pytest.raises(SettingsError, match="--seeds 0"):
        plan(recipe, recipe.scale("full"), seeds=0)
    assert [cell.name for cell in plan(recipe, recipe.scale("full"), chosen=["BP/training", "sum"])][:2] == [
        "sum/accuracy", "sum/training",
    ]  # fmt: skip


def test_recipes_are_found_by_name_or_file(tmp_path: Path) -> None:
    assert find("launay2019-table2").is_file()
    assert find(str(tiny_table.write(tmp_path))) == tmp_path / "tiny.yaml"
    with pytest.raises(SettingsError, match="Did you mean 'launay2019-table2'"):
        find("launay2019-tabel2")
    with pytest.raises(SettingsError, match="no such file"):
        find("nowhere.yaml")


def test_the_command_of_a_file_can_be_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = read(tiny_table.write(tmp_path, name="my table"))
    assert recipe.command == "bpfree table 'my table.yaml'"
    assert recipe.is_run_by(recipe.command)
    assert recipe.repeated(recipe.scale("reduced"), 3, ["DFA", "cosine 1"]) == (
        "bpfree table 'my table.yaml' --scale reduced --cell DFA 'cosine 1' --seeds 3"
    )


def test_the_command_of_a_file_elsewhere_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("here", "far", "here/below"):
        (tmp_path / folder).mkdir()
        tiny_table.write(tmp_path / folder)
    monkeypatch.chdir(tmp_path / "here")
    far, here, below = (read(find(name)) for name in (str(tmp_path / "far/tiny.yaml"), "tiny.yaml", "below/tiny.yaml"))
    commands = [f"bpfree table {name}tiny.yaml" for name in ("../far/", "", "below/")]
    assert [recipe.command for recipe in (far, here, below)] == commands
    assert [far.is_run_by(command) for command in commands] == [True, False, False]
    # Given in another folder, where there is no such file.
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b")
    assert far.is_run_by(commands[0])


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_scene.archive(tmp_path_factory.mktemp("scenes"))


@pytest.mark.parametrize("name", names())
def test_every_recipe_of_the_package_can_be_run(name: str, tmp_path: Path, scenes: Path) -> None:
    for folder in scenes.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    # Any text and any log may be in the folder: runs are known by what is there, and nothing of it is parsed.
    for file in ("train.txt", "valid.txt", "test.txt", "ml-100k.inter", "ml-100k.user", "ml-100k.item"):
        (tmp_path / file).write_text(f"{file}\n")
    recipe = read(find(name))
    assert {"full"} <= set(recipe.scales)
    assert recipe.source
    for scale in recipe.scales.values():
        assert works(plan(recipe, scale, data_dir=str(tmp_path)))


def test_table_2_of_launay_2019_says_what_the_paper_and_its_code_do() -> None:
    recipe = read(find("launay2019-table2"))
    found = {work.label: work.settings for work in works(plan(recipe, recipe.scale("full"), seeds=1))}
    assert len(found) == 10  # nine rows, one of them with both slopes
    assert {run.rule.rule.reduction for run in found.values()} == {"sum"}
    assert {label for label, run in found.items() if run.rule.lr == 1e-4} == {
        "norm+|x|", "norm+lReLU(-0.5)", "norm+lReLU(+0.5)",
    }  # fmt: skip
    assert {(run.rule.optimizer, run.rule.schedule, run.batch_size, run.epochs) for run in found.values()} == {
        ("SGD", "constant", 128, 50)
    }
    assert found["no norm"].rule.rule.feedback.normalization == "none"
    assert found["norm"].rule.rule.feedback.normalization == "launay2019"


def test_the_other_tables_say_what_the_papers_do() -> None:
    def runs(name: str) -> dict:
        recipe = read(find(name))
        return {work.label: work.settings for work in works(plan(recipe, recipe.scale("full"), seeds=1))}

    for name, count, batch in (("grape-table1", 36, 256), ("grape-table2", 6, 128)):
        found = runs(name)
        assert len(found) == count
        usual = [run for label, run in found.items() if not label.startswith("PEPITA")]
        assert {(run.rule.optimizer, run.rule.lr, run.rule.schedule) for run in usual} == {
            ("Adam", 1e-4, "exponential")
        }
        assert {(run.batch_size, run.epochs) for run in usual} == {(batch, 100)}
        rules = [run.rule.rule for label, run in found.items() if label.startswith("GrAPE")]
        assert {(rule.step, rule.estimate, rule.perturbations) for rule in rules} == {(1e-3, "cumulative", "normal")}
    found = {label: run for label, run in runs("grape-table1").items() if label.startswith("PEPITA")}
    assert {label[-3:]: run.batch_size for label, run in found.items()} == {"MLP": 64, "CNN": 50}
    assert {label for label, run in found.items() if run.rule.lr != 1e-2} == {"PEPITA / MNIST MLP"}
    assert found["PEPITA / MNIST MLP"].rule.lr == 0.1
    assert {run.rule.rule.output_error for run in found.values()} == {"second"}
    found = runs("launay2019-table4")
    assert {tuple(run.taps) for run in found.values()} == {("pool*",)}
    assert {run.rule.lr for run in runs("launay2019-figure4").values()} == {5e-4}
    found = runs("launay2019-table3")
    assert {(run.rule.lr, run.rule.schedule, run.visualize) for run in found.values()} == {
        (1e-2, "plateau", "conv1_2.conv")
    }
    assert {run.augmentation.flip for run in found.values()} == {True}
    # A square of 224 pixels out of one of 256.
    (area,) = {run.augmentation.resized_crop_scale for run in found.values()}
    assert area == ((224 / 256) ** 2, (224 / 256) ** 2)
    sizes = [run.model["init_args"]["bottleneck"] for run in runs("launay2019-figure4").values()]
    assert len(sizes) == 14


def test_tables_of_scenes_share_their_runs(scenes: Path) -> None:
    """Keys tell scenes, rules and scales apart; table 1, table A.5 and figure A.3 show numbers of the same runs."""

    def runs(name: str, scale: str) -> dict[str, Any]:
        recipe = read(find(name))
        return {work.label: work for work in works(plan(recipe, recipe.scale(scale), seeds=1, data_dir=str(scenes)))}

    names = {"launay2020-table1": 8, "launay2020-tableA5": 32, "launay2020-figureA3": 16, "launay2020-figureA1": 7}
    of_scale = {}
    for scale in ("full", "reduced"):
        one, five, three, tiny = (runs(name, scale) for name in names)
        for found, count in zip((one, five, three, tiny), names.values(), strict=True):
            assert len({work.key for work in found.values()}) == len(found) == count
        shared = ["Lego, DFA", "Fern, DFA"]
        assert (
            [one[row].key for row in shared] == [five[row].key for row in shared] == [three[row].key for row in shared]
        )
        assert (one["Lego, BP"].key == five["Lego, BP"].key) == (scale == "reduced")  # at full scale of other sizes
        of_scale[scale] = {work.key for found in (one, five, three, tiny) for work in found.values()}
    assert not of_scale["full"] & of_scale["reduced"]
    tiny = runs("launay2020-figureA1", "reduced")
    assert {work.settings.rule.window for work in tiny.values()} == {1, 2}
    assert {(work.settings.batch_size, work.settings.steps, work.settings.threads, work.options.scene.views)
            for work in tiny.values()} == {(1024, 5000, 1, 20)}  # fmt: skip
    assert {work.settings.model["init_args"]["samples"] for work in tiny.values()} == {64}


def test_a_key_knows_a_scene_by_its_files(scenes: Path, tmp_path: Path) -> None:
    """Wherever its folder lies."""
    settings = {"data": "blender", "scene": {"folder": "nerf_synthetic/lego"}, "model": "NeRFTiny", "rule": "BP"}
    (tmp_path / "moved").symlink_to(scenes / "nerf_synthetic" / "lego")
    elsewhere = settings | {"scene": {"folder": "moved"}}
    (one,), (other,) = of_settings("a", settings, 1, str(scenes)), of_settings("a", elsewhere, 1, str(tmp_path))
    (alone,) = of_settings("a", settings | {"scene": {}}, 1, str(tmp_path / "moved"))
    (mic,) = of_settings("a", settings | {"scene": {"folder": "nerf_synthetic/mic"}}, 1, str(scenes))
    assert one.key == other.key == alone.key != mic.key
    with pytest.raises(DataError, match=r"--scene.folder away: there is no folder .*away"):
        of_settings("a", settings | {"scene": {"folder": "away"}}, 1, str(scenes))


def test_every_layer_of_grapes_first_table_learns() -> None:
    recipe = read(find("grape-table1"))
    pixels = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32)}
    seen = set()
    for work in works(plan(recipe, recipe.scale("full"), seeds=1)):
        kind = (work.settings.label.partition(" / ")[0], work.settings.model["class_path"])
        if kind in seen:
            continue  # by the same rule on other pictures
        seen.add(kind)
        x, y = torch.rand(4, *pixels[work.options.data]), torch.arange(4)
        images = Images(x, y)
        splits = Splits(work.options.data, images, images, classes=10, normalization=Normalization((0.0,), (1.0,)))
        task = learner(work.settings, splits)
        task.batch_loss((x, y)).backward()
        still = [name for name, weight in task.model.named_parameters() if weight.grad is None]
        assert not still, (kind, still)
    assert len(seen) == 12


def test_the_recipe_of_the_documentation_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "tables.md").read_text()
    text, _ = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    recipe = read(tiny_table.write(tmp_path, text))
    assert len(works(plan(recipe, recipe.scale("full")))) == 9
