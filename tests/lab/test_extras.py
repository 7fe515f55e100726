"""What is not installed is named, with what installs it, whatever the command."""

from __future__ import annotations

import builtins
import importlib
import sys
from importlib.metadata import requires
from typing import Any

import pytest

import bpfree.lab.data
from bpfree.lab import commands
from bpfree.lab.cli import main
from bpfree.lab.extras import missing
from bpfree.lab.tables import work


@pytest.mark.parametrize(
    ("module", "extra"),
    [("torch_geometric", "graphs"), ("torch_geometric.nn", "graphs"), ("polars", "clicks"),
     ("imageio_ffmpeg", "rendering"), ("lightning.pytorch", "lab"),
     ("yaml", "lab"), ("PIL", "lab"), ("sklearn", "lab"), ("vl_convert", "lab"), ("docstring_parser", "lab"),
     ("optuna", "lab")],
)  # fmt: skip
def test_modules_are_named_with_their_extra(module: str, extra: str) -> None:
    said = missing(ModuleNotFoundError("", name=module))
    assert said == f"{module.partition('.')[0]} is not installed: pip install 'bpfree[{extra}]'."
    assert any(f'extra == "{extra}"' in entry for entry in requires("bpfree") or [])


@pytest.mark.parametrize("module", ["numpy", "PIL"])
def test_data_that_cannot_be_read_without_a_package_say_so(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for known in [name for name in sys.modules if name.startswith(f"{bpfree.lab.data.__name__}")]:
        monkeypatch.delitem(sys.modules, known)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=f"^{module} is not installed: pip install 'bpfree.lab.'"):
        importlib.import_module("bpfree.lab.data")


@pytest.mark.parametrize("module", ["my_file", "bpfree.lab.nosuch", None])
def test_other_modules_are_no_extras(module: str | None) -> None:
    assert missing(ModuleNotFoundError("", name=module)) is None


@pytest.mark.parametrize("name", ["compare", "train", "table", "tune", "report"])
def test_a_command_that_lacks_something_says_so(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'altair'", name="altair")

    monkeypatch.setattr(commands, "_run", without)
    assert main([name]) == 1
    assert capsys.readouterr().err == "bpfree: altair is not installed: pip install 'bpfree[lab]'.\n"


def test_what_every_command_needs_is_named_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "bpfree.lab" and "commands" in (args[2] or ()):
            raise ModuleNotFoundError("No module named 'jsonargparse'", name="jsonargparse")
        return known(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["compare"]) == 1
    assert "jsonargparse is not installed: pip install 'bpfree[lab]'" in capsys.readouterr().err


def test_a_mistake_of_ones_own_is_no_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'my_helpers'", name="my_helpers")

    monkeypatch.setattr(commands, "_run", without)
    with pytest.raises(ModuleNotFoundError, match="my_helpers"):
        main(["compare"])


@pytest.mark.parametrize("name", ["grape-figure4", "launay2019-table3", "launay2020-figure2"])
def test_without_graphs_a_recipe_is_planned_or_names_what_it_needs(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in [
        module for module in sys.modules if module.startswith(("torch_geometric", "bpfree.lab.models.graphs"))
    ]:
        monkeypatch.delitem(sys.modules, module)
    for module in [module for module in sys.modules if module.startswith("bpfree.lab.tasks.")]:
        if module.rpartition(".")[2] in ("whole_graph", "graphs", "links", "neighbors"):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    for kept in (work._resolved, work._option):
        kept.cache_clear()
    # One cell, of no data that lie anywhere: what comes before the data is what could be missing.
    assert main(["table", name, "--cost", "--data-dir", "/nonexistent"]) == 1
    said = capsys.readouterr().err
    assert "pip install 'bpfree[graphs]'" in said or "is not a folder" in said or "trains nothing" in said
    assert ("graphs]" in said) == (name.startswith("launay2020"))
