"""One command reads a recipe, plans each of its scales and asks the ledger once."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bpfree.lab import data
from bpfree.lab.queue.ledger import Ledger
from bpfree.lab.recipe.reading import read
from bpfree.lab.tables import recipe_page
from bpfree.lab.tables.cells import plan
from bpfree.lab.tables.command_options import ReportOptions, TableOptions
from bpfree.lab.tables.table import table
from bpfree.lab.tables.work import Training
from support import tiny_lab, tiny_table


@pytest.fixture(autouse=True)
def tiny_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.DATA_SETS, "tiny", lambda folder: tiny_lab.splits())
    monkeypatch.chdir(tmp_path)
    tiny_table.write(tmp_path)
    monkeypatch.setattr(Training, "perform", lambda self, *_: tiny_table.record(self.label, self.seed, 60.0))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of these functions was called, whichever module calls it."""
    count: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            count[name] += 1
            return function(*given, **named)

        return call

    for name, function in (("read", read), ("plan", plan)):
        for module in [module for path, module in sys.modules.items() if path.startswith("bpfree.lab")]:
            if getattr(module, name, None) is function:
                monkeypatch.setattr(module, name, counted(name, function))
    for name in ("_look", "_opened", "ask", "adopt"):
        monkeypatch.setattr(Ledger, name, counted(name, getattr(Ledger, name)))
    return count


COMPUTED = """
title: What layers take
base: {function: support.tiny_table.weight}
columns: {size: {metric: bytes}}
rows: {narrow: {arguments: {width: 2, layers: 3}}}
"""
ONCE = {"read": 1, "plan": 2, "_opened": 1, "_look": 1}  # the recipe has two scales


@pytest.mark.parametrize("chosen", [{}, {"seeds": 1}, {"cell": ["DFA"]}, {"scale": "reduced", "seeds": 2}])
def test_a_finished_table_is_read_planned_and_asked_for_once(chosen: dict[str, Any], calls: Counter[str]) -> None:
    table(TableOptions(name="tiny.yaml", **chosen))
    for _ in range(2):
        calls.clear()
        table(TableOptions(name="tiny.yaml", **chosen))
        assert calls == ONCE


def test_a_report_reads_plans_and_asks_once(calls: Counter[str]) -> None:
    tiny_table.write(Path(), COMPUTED, "computed")
    table(TableOptions(name="computed.yaml"))
    calls.clear()
    recipe_page.report(ReportOptions(name="computed.yaml"))
    assert calls == ONCE | {"plan": 1}


def test_records_of_the_folder_are_entered_at_once(calls: Counter[str]) -> None:
    document = table(TableOptions(name="tiny.yaml"))
    calls.clear()
    assert table(TableOptions(name="tiny.yaml", ledger="other.db")) == document
    assert (calls["adopt"], calls["ask"], calls["plan"]) == (1, 0, 2)


def test_more_seeds_in_the_ledger_than_in_the_file_are_planned_and_shown() -> None:
    table(TableOptions(name="tiny.yaml", seeds=4, out="elsewhere"))
    document = table(TableOptions(name="tiny.yaml"))
    assert {entry["seeds"] for entry in document["tables"]["full"] if entry["column"] == "accuracy"} == {4}
