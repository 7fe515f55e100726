"""Tables on a terminal, which may be narrow."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from bpfree.lab.queue.snapshot import State
from bpfree.lab.recipe.locate import find
from bpfree.lab.recipe.reading import read
from bpfree.lab.tables import result, terminal_view
from bpfree.lab.tables.cells import plan

WIDTH = 80


def shown(table: Table) -> str:
    console = Console(file=io.StringIO(), width=WIDTH, markup=False, highlight=False)
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize("name", ["launay2019-table2", "launay2020-table3", "launay2020-table4"])
def test_every_number_of_a_table_is_there_on_80_columns(name: str) -> None:
    recipe = read(find(name))
    scale = recipe.scale("full")
    entries = result.entries(plan(recipe, scale, 1), State({}, {}, []), scale)
    for number, entry in enumerate(entries):
        entry |= {"mean": 10 + number / 100, "std": 0.25, "seeds": 10, "failed": number % 2, "within": False}
    text = shown(terminal_view.table(recipe, scale, entries))
    assert max(map(len, text.splitlines())) <= WIDTH
    for entry in entries:
        digits = entry["digits"]
        assert f" {entry['mean']:.{digits}f} ± {0.25:.{digits}f} " in text
        if entry["paper"] is not None:
            assert f" {entry['paper']:.{digits}f} " in text
    assert text.count(" no │") == len(entries)


def test_every_number_of_a_cost_is_there_on_80_columns() -> None:
    recipe = read(find("launay2020-table3"))
    row = {"runs": 1234, "steps": 468750, "step_flops": 1234.5e9, "step_operations": 1234.0}
    row |= {"label": "DNAConv DFA, error at the logits / CiteSeer", "bytes": 10.61 * 2**30}
    row |= {"hours": 5770.78, "gpu_hours": 1023.37}
    environment = {"threads": 1, "processor": "any", "gpu": None}
    taken = {"rows": [row], "runs": 1234, "environment": environment, "assumed": None}
    text = shown(terminal_view.cost(recipe, taken | {name: row[name] for name in ("bytes", "hours", "gpu_hours")}))
    assert max(map(len, text.splitlines())) <= WIDTH
    for number in ("1,234", "468,750", "1,234.5", "10.61", "5,770.78", "1,023.37"):
        assert f" {number} " in text
