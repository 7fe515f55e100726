"""A logger hears every evaluation, and no number and no key of a run depends on it."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bpfree.lab import data
from bpfree.lab.cli import main
from bpfree.lab.errors import SettingsError
from bpfree.lab.running import loggers, runs
from bpfree.lab.running.loggers import check_logger
from bpfree.lab.running.runs import run
from support import tiny_lab, tiny_table

OWN = """
import json
from lightning.pytorch.loggers import Logger

class Own(Logger):
    def __init__(self, save_dir, name, more=0):
        super().__init__()
        self._name, self.lines = name, save_dir / "own.jsonl"

    name = property(lambda self: self._name)
    version = 0

    def log_metrics(self, metrics, step=None):
        with self.lines.open("a") as file:
            file.write(json.dumps({"run": self.name, "step": step} | metrics) + "\\n")

    def log_hyperparams(self, *_, **__):
        pass

class Hungry(Own):
    def __init__(self, save_dir, project):
        super().__init__(save_dir, "x")

def function(): ...
"""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a logger of one's own, and tiny pictures among the data sets."""
    (tmp_path / "my_loggers.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(data.DATA_SETS, "tiny", lambda folder: tiny_lab.splits())
    monkeypatch.delitem(sys.modules, "my_loggers", raising=False)


def heard(folder: Path) -> list[dict[str, Any]]:
    """What the logger of one's own heard of the only run in a folder."""
    (path,) = folder.rglob("own.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_hears_what_the_record_says_and_changes_nothing_in_it(tmp_path: Path) -> None:
    sys.path.insert(0, "")
    records = {}
    for name in ("csv", "my_loggers.Own"):
        records[name] = run(tiny_lab.settings(), tiny_lab.splits(), tmp_path / name, logger=name)
    assert tiny_table.timeless(records["csv"]) == tiny_table.timeless(records["my_loggers.Own"])
    (path,) = (tmp_path / "csv").rglob("log/version_0/metrics.csv")
    rows = list(csv.DictReader(path.open()))
    lines = heard(tmp_path / "my_loggers.Own")
    assert [line["run"] for line in lines] == [path.parts[-4]] * 4
    for record, row, line in zip(records["csv"]["epochs"], rows, lines, strict=True):
        for name in ("train_loss", "eval_accuracy"):
            assert float(row[name]) == pytest.approx(record[name])
            assert line[name] == pytest.approx(record[name])
        for tap in record["alignment"]:
            assert line[f"alignment/{tap['name']}"] == pytest.approx(tap["cosine_mean"])


def test_tensorboard_gets_the_same(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    record = run(tiny_lab.settings(), tiny_lab.splits(), tmp_path / "events", logger="tensorboard")
    plain = run(tiny_lab.settings(), tiny_lab.splits(), tmp_path / "plain")
    assert tiny_table.timeless(record) == tiny_table.timeless(plain)
    (folder,) = (tmp_path / "events").rglob("log/version_0")
    read = events.EventAccumulator(str(folder)).Reload()
    tap = record["epochs"][0]["alignment"][0]["name"]
    assert [event.value for event in read.Scalars("eval_accuracy")] == pytest.approx(
        [epoch["eval_accuracy"] for epoch in record["epochs"]]
    )
    assert len(read.Scalars(f"alignment/{tap}")) == 4


WORDS = ["--model", "MLP", "--model.hidden", "[16,16]", "--epochs", "1", "--threads", "1", "--data", "tiny"]


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--rule", "DFA", *WORDS, "--out", "runs"],
        ["compare", "--rules", "DFA", "--seeds", "1", *WORDS, "--out", "runs"],
        ["table", "tiny.yaml", "--scale", "reduced", "--cell", "DFA/accuracy"],
    ],
    ids=lambda words: words[0],
)
def test_every_command_that_trains_takes_one_and_knows_the_run_without(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_table.write(tmp_path)
    assert main([*words, "--logger", "my_loggers.Own"]) == 0
    assert len(heard(tmp_path / "runs")) == 1
    monkeypatch.setattr(runs, "learner", lambda *_: pytest.fail("it ran again"))
    assert main(words) == 0


@pytest.mark.parametrize("command", ["train", "compare", "table"])
def test_one_that_cannot_be_is_refused_before_anything_is_read(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tiny_table.write(tmp_path)
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    monkeypatch.setitem(data.DATA_SETS, "tiny", lambda folder: pytest.fail("it was read"))
    words = ["table", "tiny.yaml"] if command == "table" else [command, *WORDS]
    assert main([*words, "--logger", "tensorboard"]) == 1
    assert "--logger tensorboard: tensorboard is not installed: pip install tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tensorbord", "Did you mean 'tensorboard'"),
        ("lightning.pytorch.loggers.Wandb", "no class of this name"),
        ("my_loggers.function", "no class of this name that is a lightning Logger"),
        ("bpfree.DFA", "no class of this name that is a lightning Logger"),
        ("nosuch.Logger", "nosuch cannot be imported"),
        ("needs.Logger", "pip install nosuch"),
        ("my_loggers.Hungry", "'project'.*Derive a class"),
    ],
)
def test_what_is_no_logger_is_told(name: str, says: str, tmp_path: Path) -> None:
    sys.path.insert(0, "")
    (tmp_path / "needs.py").write_text("import nosuch.part\n")
    with pytest.raises(SettingsError, match=f"--logger {name}: .*{says}"):
        check_logger(name)


def test_a_package_of_lightnings_loggers_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="wandb is not installed: pip install wandb"):
        check_logger("lightning.pytorch.loggers.WandbLogger")
    check_logger("lightning.pytorch.loggers.CSVLogger")
    check_logger("csv")


def test_a_recipe_names_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tiny_table.RECIPE.replace("  data: tiny\n", "  data: tiny\n  logger: csv\n")
    tiny_table.write(tmp_path, text)
    assert main(["table", "tiny.yaml"]) == 1
    assert "logger" in capsys.readouterr().err


def test_a_file_may_name_code_as_a_logger_only_where_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nobody"))
    Path("c.yaml").write_text("logger: my_loggers.Own\n")
    assert main(["train", "--config", "c.yaml", *WORDS]) == 1
    assert "names code to run, my_loggers.Own" in capsys.readouterr().err
    assert "my_loggers" not in sys.modules
    assert main(["train", "--config", "c.yaml", "--trust", *WORDS]) == 0
    assert len(heard(tmp_path / "runs")) == 1
