"""From numbers to a verdict: what is within a tolerance, and how that is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bpfree.lab.queue.snapshot import State
from bpfree.lab.recipe.schema import Column, Expected, Scale
from bpfree.lab.report.text import tolerances
from bpfree.lab.tables import markdown, result
from bpfree.lab.tables.cells import Cell


def entry(paper: float | None, measured: float, **column: Any) -> dict[str, Any]:
    """The entry of a cell of one run."""
    work = SimpleNamespace(key="k", label="row", seed=0, metric="auc")
    expected = None if paper is None else Expected(paper)
    cell = Cell("row", Column("column", **column), expected, (work,))
    (found,) = result.entries([cell], State({"k": {"auc": measured}}, {}, set()), Scale("full"))
    return found


@pytest.mark.parametrize(
    ("paper", "measured", "tolerance", "within"),
    [
        (0.918, 0.9031, 0.015, True),
        (0.918, 0.9029, 0.015, False),
        (0.918, 0.9329, 0.015, True),
        (0.918, 0.9331, 0.015, False),
        # Exactly on: in binary .918 - .903 and .933 - .918 are above .015, 46.46 - 44.96 is above 1.5.
        (0.918, 0.903, 0.015, True),
        (0.918, 0.933, 0.015, True),
        (46.46, 44.96, 1.5, True),
        (46.46, 47.96, 1.5, True),
        (24.0, 24.0, 0, True),
        (24.0, 24.001, 0, False),
        (0.0, 0.1, 0.1, True),
    ],
)
def test_a_number_is_within_its_tolerance_or_not(paper: float, measured: float, tolerance: float, within: bool) -> None:
    assert entry(paper, measured, tolerance=tolerance)["within"] is within


@pytest.mark.parametrize(
    ("measured", "within"), [(78.51, True), (78.5, True), (78.49, False), (81.49, True), (81.51, True), (100.0, True)]
)
def test_a_number_may_be_above_by_any_amount_where_the_column_says_so(measured: float, within: bool) -> None:
    assert entry(80.0, measured, tolerance=1.5, above=True)["within"] is within


def test_tolerances_are_told_with_their_side() -> None:
    both, above = entry(80.0, 80.0, tolerance=1.5), entry(80.0, 80.0, tolerance=0.015, above=True)
    found = [both | {"column": "a"}, above | {"column": "b"}]
    # Nothing is allowed where nothing is compared.
    found += [entry(None, 80.0, tolerance=1) | {"column": "c"}, entry(80.0, 80.0) | {"column": "d"}]
    assert tolerances(found) == {"a": "± 1.5", "b": "−0.015/+∞"}


def test_strokes_in_names_end_no_cell_of_the_page() -> None:
    named = entry(80.0, 80.0, tolerance=1) | {"row": "|x|", "column": "a|b"}
    words = {"title": "T", "command": "c", "source": {}, "deviations": [], "remarks": [], "records": []}
    page = markdown.section({**words, "scales": {"full": {"cut": ""}}, "tables": {"full": [named]}})
    head, _, row = (line for line in page.splitlines() if line.startswith("|"))
    assert head == r"|  | a\|b<br>± 1 | seeds |"
    assert row.startswith(r"| \|x\| | 80.00 ✓<br>80.00 |")
