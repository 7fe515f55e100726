"""The papers' numbers in the recipes, read a second time: from the papers' text, where that is at hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bpfree.lab.recipe.locate import find
from bpfree.lab.recipe.reading import read
from bpfree.lab.recipe.schema import Recipe

SHARED = Path(__file__).parents[4] / "shared"
NUMBER = r"\d+\.?\d*|\.\d+"


def text(*path: str) -> str:
    file = SHARED.joinpath(*path)
    if not file.is_file():
        pytest.skip(f"{file.name} is not in ../shared")
    return file.read_text(encoding="utf-8")


def expected(recipe: Recipe) -> dict[tuple[str, str], tuple[float, float | None]]:
    return {
        (row, column): (value.mean, value.std)
        for row, cells in recipe.expected.items()
        for column, value in cells.items()
    }


def lines_of(page: str, begin: str) -> dict[str, list[str]]:
    """The lines of the table below a caption by their first cell, without what mathematics and emphasis put in."""
    found: dict[str, list[str]] = {}
    for line in page[page.index(begin) :].splitlines():
        name, *cells = line.rstrip("\t").split("\t")
        if cells:
            # The first of a name: other tables follow.
            found.setdefault(re.sub(r"[$|\s]|\(ours\)", "", name), cells)
    return found


def number_and_deviation(cell: str) -> tuple[float, float | None] | None:
    numbers = [float(value) for value in re.findall(NUMBER, cell.replace("<b>", ""))]
    return (numbers[0], numbers[1] if len(numbers) > 1 else None) if numbers else None


@pytest.mark.parametrize(
    ("name", "first", "begin"),
    [
        ("grape-table1", 1, "Table 1: Performances of a shallow"),
        ("grape-table2", 0, "Table 2: Performances of AlexNet"),
    ],
)
def test_the_tables_of_grape(name: str, first: int, begin: str) -> None:
    recipe = read(find(name))
    found = lines_of(text("papers", "grape-gradient-aligned-feedbacks.txt"), begin)
    numbers = {
        (row, column): value
        for row in recipe.rows
        for column, cell in zip(recipe.columns, found[row][first:], strict=True)
        if (value := number_and_deviation(cell)) is not None
    }
    assert expected(recipe) == numbers


# The names that the paper's table has for rows: the text has them in mathematical notation.
_NAMES = {
    "norm+|x|": "norm+x",
    "norm+lReLU(-0.5)": "norm+IReLU(-0.5)",
    "norm+lReLU(0.01)": "norm+IReLU(0.01)",
}


@pytest.mark.parametrize(("name", "begin"), [("launay2019-table2", "Table 2: "), ("launay2019-table4", "Table 4: ")])
def test_the_tables_of_launay_2019(name: str, begin: str) -> None:
    recipe = read(find(name))
    rows = lines_of(text("papers", "launay-2019-principled-dfa.txt"), begin)
    numbers = {}
    for row in recipe.expected:
        cells = rows[re.sub(r"[|\s]", "", _NAMES.get(row, row))]
        for column, cell in zip(recipe.columns, cells, strict=True):
            numbers[row, column] = number_and_deviation(cell)
    assert expected(recipe) == numbers
    assert set(recipe.rows) - set(recipe.expected) <= {"norm+lReLU(+0.5)"}


_GRAPHS_2020 = ("Cora", "CiteSeer", "PubMed")
_NETS_2020 = ("ChebConv", "GraphConv", "SplineConv", "GATConv", "DNAConv")


def cells_of_2020(begin: str, first: int) -> list[list[float]]:
    """The numbers in each line of the text, from ``first`` lines behind ``begin`` on."""
    lines = text("papers", "launay-2020-dfa-scales.txt").split(begin)[1].splitlines()[first:]
    return [[float(found) for found in re.findall(r"\d+\.\d+", line)] for line in lines]


@pytest.mark.parametrize(
    ("name", "begin", "first", "rows"),
    [
        ("launay2020-table3", "Table 3: ", 4, [f"{net} {rule}" for net in _NETS_2020 for rule in ("BP", "DFA")]),
        ("launay2020-tableA4", "Table A.4: ", 3, list(_NETS_2020)),
    ],
)
def test_the_tables_of_graphs_of_launay_2020(name: str, begin: str, first: int, rows: list[str]) -> None:
    found = cells_of_2020(begin, first)
    numbers = {
        (row, graph): (value, None)
        for line, graph in enumerate(_GRAPHS_2020)
        for row, value in zip(rows, found[line], strict=True)
    }
    assert expected(read(find(name))) == numbers


def test_the_auto_encoder_of_launay_2020() -> None:
    found = cells_of_2020("Table 3: ", 10)
    columns = [f"{graph} {metric}" for graph in _GRAPHS_2020 for metric in ("AUC", "AP")]
    numbers = {
        (row, column): (found[line][place], None)
        for line, column in enumerate(columns)
        for place, row in enumerate(("BP", "DFA"))
    }
    assert expected(read(find("launay2020-table4"))) == numbers


def test_the_alignments_of_launay_2020() -> None:
    found = cells_of_2020("Table A.2: ", 3)[0]
    numbers = {
        (net, "the code's way"): (found[2 * place], found[2 * place + 1]) for place, net in enumerate(_NETS_2020)
    }
    assert expected(read(find("launay2020-tableA2"))) == numbers


def test_the_scenes_of_launay_2020() -> None:
    """Numbers of others, which are quoted, stand in a sentence."""
    found = lines_of(text("papers", "launay-2020-dfa-scales.txt"), "Table A.5: ")
    recipe = read(find("launay2020-tableA5"))
    scenes = list(dict.fromkeys(row.partition(", ")[0] for row in recipe.rows))
    numbers, quoted = {}, []
    for scene in scenes:
        *others, bp, dfa = (cell for cell in found[scene] if cell)
        numbers |= {(f"{scene}, BP", "PSNR"): (float(bp), None), (f"{scene}, DFA", "PSNR"): (float(dfa), None)}
        quoted.append(f"{scene} {', '.join(others)}")
    assert len(scenes) == 16
    assert expected(recipe) == numbers
    assert [part in " ".join(recipe.remarks) for part in quoted] == [True] * 16
    assert expected(read(find("launay2020-table1"))) == {
        (row, column): value for (row, column), value in numbers.items() if row in ("Lego, DFA", "Fern, DFA")
    }


def test_the_14_points_of_figure_4_of_launay_2019() -> None:
    recipe = read(find("launay2019-figure4"))
    page = text("reference", "settings.md")
    part = page[page.index("### 1.4 Figure 4") :].partition("###")[2].partition("\n### ")[0]
    lines = {
        cells[0]: cells[1:]
        for line in part.splitlines()
        if line.startswith("|")
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    }
    columns = {
        "train %": "train accuracy",
        "test %": "test accuracy",
        "cos (bottleneck)": "bottleneck",
        "cos layer 1": "alignment 1",
        "cos layer 3": "alignment 3",
    }
    numbers = {
        (row, column): (float(value), None)
        for line, column in columns.items()
        for row, value in zip(lines["b"], lines[line], strict=True)
    }
    assert len(numbers) == 5 * 14
    assert expected(recipe) == numbers
    assert [row["model"]["init_args"]["bottleneck"] for row in recipe.rows.values()] == [
        int(row) for row in recipe.rows
    ]
