"""Files of strangers: what they name is imported where the user vouches for it, and nowhere else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bpfree.lab.cli import main
from bpfree.lab.errors import TrustError
from bpfree.lab.recipe.locate import FOLDER, find, names
from bpfree.lab.recipe.reading import read
from bpfree.lab.settings import trust
from bpfree.lab.tables.command_options import ReportOptions, TableOptions
from support.recipe_text import RECIPE

CODE = {
    "function": "function: marker.run",
    "a function that is here already": "function: os.system, arguments: {command: touch ran}",
    "a function of bpfree's that is no study": "function: bpfree.lab.cli.main",
    "a function of torch": "function: torch.hub.load",
    "what a study has imported": "function: bpfree.lab.studies.memory.torch.hub.load",
    "rule": "rule: {class_path: marker.Rule}",
    "projector": "rule: {class_path: DFA, init_args: {feedback: marker.project}}",
    "within": "within: marker.Within",
    "model": "model: marker.Net",
    "argument of a model": "model: {class_path: MLP, init_args: {activation: marker.run}}",
    "what a module of bpfree has imported": "model: {class_path: bpfree.lab.process.glibc_heap.ctypes.CDLL}",
}


@pytest.fixture(autouse=True)
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a stranger's, in which every module says that it was imported. Nobody has vouched for it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "strangers"
    folder.mkdir()
    monkeypatch.chdir(folder)
    marker = f"open({str(folder / 'ran')!r}, 'a').write(__name__)\n"
    for name in ("marker", "altair", "optuna", "lightning"):
        (folder / f"{name}.py").write_text(marker + "def run(seed=0): return {'accuracy': 1.0}\n")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "marker", raising=False)
    return folder


def mark(folder: Path) -> None:
    trust.marks().parent.mkdir(parents=True, exist_ok=True)
    trust.marks().write_text(f"\n{folder}\n")


def recipe(kind: str) -> Path:
    Path("r.yaml").write_text(RECIPE.format(base=CODE[kind]))
    return Path("r.yaml")


@pytest.mark.parametrize("kind", CODE)
def test_code_in_a_recipe_is_named_and_not_imported(kind: str) -> None:
    with pytest.raises(TrustError, match=r"r\.yaml names code to run, .* nothing of it has been imported.*--trust"):
        read(recipe(kind), trust=False)
    assert not Path("ran").exists()
    assert "" not in sys.path


@pytest.mark.parametrize(
    "place", ["rows: {a: {function: marker.run}}", "cells: {a/accuracy: {rule: marker.Rule}}",
              "columns: {accuracy: {model: marker.Net}}", "scales: {full: {rule: marker.Rule}}",
              "search: {rule.feedback: [marker.project]}", "search: {model: [marker.Net]}"],
)  # fmt: skip
def test_wherever_it_stands_in_the_file(place: str) -> None:
    Path("r.yaml").write_text(f"title: T\n{place}\n")
    with pytest.raises(TrustError, match="names code to run, marker"):
        read(Path("r.yaml"), trust=False)


def test_a_recipe_that_extends_one_that_names_code_is_no_better() -> None:
    recipe("function").rename("below.yaml")
    Path("r.yaml").write_text("title: T\nextends: below.yaml\n")
    with pytest.raises(TrustError, match=r"below\.yaml names code to run"):
        read(Path("r.yaml"), trust=False)


@pytest.mark.parametrize(
    "words", [["table", "r.yaml"], ["table", "r.yaml", "--cost"], ["report", "r.yaml"], ["tune", "r.yaml"]]
)
def test_no_command_imports_it(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    recipe("function")
    assert main(words) == 1
    assert "names code to run, marker.run" in capsys.readouterr().err
    assert not Path("ran").exists()


@pytest.mark.parametrize("words", [["compare"], ["train"]])
def test_neither_does_a_configuration(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.yaml").write_text("model: {class_path: marker.Net}\nepochs: 1\n")
    assert main([*words, "--config", "c.yaml"]) == 1
    assert main([*words, "--config=c.yaml"]) == 1
    assert capsys.readouterr().err.count("c.yaml names code to run, marker.Net") == 2
    assert not Path("ran").exists()


def test_what_the_user_has_vouched_for_is_imported(strangers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipe("function")
    for place in (strangers, strangers.parent):
        mark(place)
        assert read(path, trust=False).base["function"] == "marker.run"
    mark(strangers / "below")
    with pytest.raises(TrustError):
        read(path, trust=False)
    assert TableOptions(name="r.yaml", trust=True).recipe().base["function"] == "marker.run"
    assert sys.path[0] == ""  # where it will be looked for
    with pytest.raises(TrustError):
        ReportOptions(name="r.yaml").recipe()


@pytest.mark.parametrize("text", ["trust: true\n", "trust: false\n"])
def test_a_file_cannot_vouch_for_itself(text: str, strangers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.yaml").write_text(f"{text}name: r.yaml\n")
    recipe("function")
    assert main(["table", "--config", "c.yaml"]) == 1
    assert "a file cannot vouch for itself" in capsys.readouterr().err
    Path("trusted-folders").write_text(f"{strangers}\n")
    (strangers / ".config" / "bpfree").mkdir(parents=True)
    (strangers / ".config" / "bpfree" / "trusted-folders").write_text(f"{strangers}\n")
    with pytest.raises(TrustError):
        read(Path("r.yaml"), trust=False)


def test_recipes_of_the_package_and_plain_ones_need_nothing() -> None:
    for name in names():
        read(find(name), trust=False)
    assert all(path.parent == FOLDER for path in map(find, names()))
    Path("r.yaml").write_text(
        RECIPE.format(base="model: {class_path: torch.nn.Sequential}, rule: bpfree.DFA, taps: [conv1.act]")
    )
    read(Path("r.yaml"), trust=False)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["train", "--model", "marker.Net"], True),
        (["train", "--model=marker.Net"], True),
        (["train", "--rule", "Mine", "--settings.Mine.rule", "marker.Rule"], True),
        (["compare", "--settings", '{"Mine": {"rule": {"class_path": "marker.Rule"}}}'], True),
        (["train", "--model", "MLP"], False),
        (["train", "--model", "torch.nn.Linear"], False),
        (["table", "marker.yaml"], False),
        (["compare", "--rules", "marker.x"], False),
        (["train", "--data-dir", "marker.d", "--config", "marker.yaml"], False),
    ],
)
def test_the_current_folder_is_searched_for_what_a_command_line_names(words: list[str], named: bool) -> None:
    assert trust.names_code(words) == named


def test_modules_of_the_current_folder_do_not_stand_in_for_installed_ones() -> None:
    Path("r.yaml").write_text(RECIPE.format(base="rule: DFA"))
    for words in (["table", "--list"], ["table", "nosuch"], ["report", "r.yaml", "--cell", "nosuch"]):
        main(words)
        assert "" not in sys.path
        assert str(Path.cwd()) not in sys.path
    assert not Path("ran").exists()
