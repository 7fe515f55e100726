"""The page of a recipe: its table, figures and pictures; in headless Chromium, where one is installed."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

import browser
import tiny
from PIL import Image

from bpfree.lab import data
from bpfree.lab.report import recipe_charts
from bpfree.lab.tables import page
from bpfree.lab.tables.options import ReportOptions, TableOptions
from bpfree.lab.tables.plan import plan
from bpfree.lab.tables.reading import read
from bpfree.lab.tables.recipe import Recipe, find
from bpfree.lab.tables.table import table

# Run after the page's own scripts: what is drawn, how high, and whether pictures were read.
PROBE = """
<script>
addEventListener("load", async () => {
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  for (let i = 0; i < 200 && document.documentElement.dataset.charts !== "drawn"; i++) await wait(50);
  const found = { charts: {}, wide: document.documentElement.scrollWidth - innerWidth };
  for (const chart of all(".vega")) {
    const box = chart.querySelector("svg").getBoundingClientRect();
    const points = all(".mark-symbol path", chart).map((path) => {
      const at = path.getBoundingClientRect();
      const open = getComputedStyle(path).stroke !== "none";
      return [at.x + at.width / 2, at.y + at.height / 2, open ? "open" : "filled"];
    });
    found.charts[chart.id] = {
      size: [box.width, box.height],
      lines: all(".mark-line path", chart).length,
      points,
      broken: /NaN|undefined/.test(chart.innerHTML),
    };
  }
  const size = (each) => [each.naturalWidth, each.naturalHeight, each.getBoundingClientRect().width];
  found.pictures = all("img").map(size);
  document.body.dataset.found = JSON.stringify(found);
});
</script>
"""


def entries(recipe: Recipe, shift: float = 0.0) -> list[dict[str, Any]]:
    """Cells that were measured ``shift`` beside the paper's number, or at their place in the table."""
    found = []
    for number, row in enumerate(recipe.rows):
        for column in recipe.columns.values():
            paper = recipe.expected.get(row, {}).get(column.name)
            found.append(
                {
                    "row": row,
                    "column": column.name,
                    "paper": paper.mean if paper else None,
                    "paper_std": paper.std if paper else None,
                    "mean": paper.mean + shift if paper else number / 100,
                    "std": 0.001,
                    "seeds": 2,
                    "failed": 0,
                    "tolerance": column.tolerance,
                    "above": column.above,
                    "within": None,
                    "digits": 2,
                }
            )
    return found


def visited(chromium: str, folder: Path, text: str) -> dict[str, Any]:
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    found, console = browser.probed(chromium, path, PROBE)
    assert console == []
    assert found, "the page's scripts did not finish"
    return found


def test_figure_4_shows_its_14_points_and_the_papers(chromium: str, tmp_path: Path) -> None:
    recipe = read(find("launay2019-figure4"))
    found = visited(chromium, tmp_path, page.html(recipe, "", entries(recipe, 0.02), [], []))
    charts = found["charts"]
    assert set(charts) == {"chart-0", "chart-1"}
    for chart, columns in (("chart-0", 2), ("chart-1", 3)):
        kinds = [kind for *_, kind in charts[chart]["points"]]
        assert (kinds.count("filled"), kinds.count("open")) == (14 * columns, 14 * columns)
        assert charts[chart]["lines"] == 2 * columns
        assert min(charts[chart]["size"]) > 200
        assert not charts[chart]["broken"]
    assert found["wide"] <= 0, "the page is wider than the window"
    # A cosine that is .02 higher stands as much higher, at the same place, whatever the column.
    points = charts["chart-1"]["points"]
    opened, filled = ([(x, y) for x, y, kind in points if kind == wanted] for wanted in ("open", "filled"))
    assert [x for x, _ in opened] == pytest.approx([x for x, _ in filled], abs=0.5)
    raised = [low - high for (_, low), (_, high) in zip(opened, filled, strict=True)]
    assert raised == pytest.approx([raised[0]] * len(raised), abs=1)
    assert raised[0] > 1


def test_figures_without_published_numbers_and_many_columns(chromium: str, tmp_path: Path) -> None:
    recipe = read(find("grape-figure2"))
    text = page.html(recipe, "", entries(recipe), [], [])
    assert "paper&#39;s" not in text.partition("</table>")[0].partition("<table")[2]
    found = visited(chromium, tmp_path, text)
    assert [len(chart["points"]) for chart in found["charts"].values()] == [30] * len(recipe.charts)
    assert all(chart["lines"] == 3 for chart in found["charts"].values())


def test_pictures_of_filters_are_shown(chromium: str, tmp_path: Path) -> None:
    recipe = read(find("launay2019-table3"))
    shown = [{"label": rule, **_picture()} for rule in ("BP", "DFA")]
    found = visited(chromium, tmp_path, page.html(recipe, "", entries(recipe), [], [], shown))
    assert [size[:2] for size in found["pictures"]] == [[20, 12]] * 2
    assert min(width for *_, width in found["pictures"]) > 200
    assert not found["charts"]


def test_filters_of_a_table_come_from_its_first_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.DATA_SETS, "tiny", lambda folder: tiny.splits())
    monkeypatch.chdir(tmp_path)
    Path("pictured.yaml").write_text(
        "title: T\nbase:\n  data: tiny\n  model: {class_path: LeNet4, init_args: {channels: [4, 6]}}\n"
        "  epochs: 1\n  alignment: never\n  visualize: conv2.conv\n"
        "rows: {BP: {rule: BP}, DFA: {rule: DFA}}\ncolumns: {accuracy: {}}\nscales: {full: {seeds: 2}}\n"
    )
    records = table(TableOptions(name="pictured.yaml"))["records"]
    shown = {record["label"]: record["visualized"]["png"] for record in records if record["seed"] == 0}
    text = page.report(ReportOptions(name="pictured.yaml")).read_text(encoding="utf-8")
    assert re.findall(r'src="data:image/png;base64,([^"]*)"', html.unescape(text)) == [shown["BP"], shown["DFA"]]


def test_rows_whose_letters_are_the_same_have_pages_of_their_own() -> None:
    recipe = read(find("launay2019-table2"))
    rows = {name: {} for name in ("x(-0.5)", "x(+0.5)", "curves", "X--0-5-")}
    files = page._file_names(replace(recipe, name="t", rows=rows, columns={}))
    assert list(files.values()) == ["t-curves.html", "t-x--0-5-.html", "t-x--0-5--2.html", "t-X--0-5--3.html"]


def test_a_cell_of_other_seeds_than_its_row_says_so() -> None:
    recipe = read(find("launay2019-table1"))
    shown = entries(recipe)
    shown[0] |= {"mean": 49.0, "std": 1.0, "seeds": 3}
    shown[1] |= {"mean": 7.0, "std": 2.0, "seeds": 5}
    text = page.html(recipe, "", shown, [], [])
    assert "49.00 ± 1.00 (3)" in text
    assert "7.00 ± 2.00<" in text
    assert "<td>5</td>" in text


def test_a_columns_tolerance_stands_below_its_name() -> None:
    recipe = read(find("launay2020-table3"))
    text = page.html(recipe, "", entries(recipe), [], [])
    assert text.count("<small>−1.5/+∞</small>") == 3  # of six columns three have published numbers
    assert '<th scope="col">Cora<br><small>−1.5/+∞</small></th>' in text
    text = page.html(read(find("launay2019-table2")), "", entries(read(find("launay2019-table2"))), [], [])
    assert '<th scope="col">alignment 1<br><small>± 0.1</small></th>' in text


def test_seeds_that_failed_are_told() -> None:
    recipe = read(find("launay2019-table1"))
    shown = entries(recipe)
    shown[0] |= {"mean": 49.0, "std": None, "seeds": 1, "failed": 4}
    assert "49.00 (4 of 5 seeds failed)" in page.html(recipe, "", shown, [], [])


def _picture() -> dict[str, Any]:
    import base64
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (20, 12), "red").save(buffer, "PNG")
    return {"module": "conv1_2.conv", "filters": 12, "png": base64.b64encode(buffer.getvalue()).decode("ascii")}


def test_rules_are_drawn_together_on_one_network_and_data_set(tmp_path: Path) -> None:
    def drawn(name: str) -> dict[str, list[str]]:
        recipe = read(find(name))
        cells = plan(recipe, recipe.scale("full"), 1)
        return {group: list(found) for group, found in page.groups(recipe, cells).items()}

    assert drawn("grape-table2") == {"AlexNet": ["BP", "DFA", "GrAPE"], "VGG-16": ["BP", "DFA", "GrAPE"]}
    assert list(drawn("launay2019-table3")) == ["curves"]
    path = tmp_path / "turned.yaml"
    path.write_text(
        "title: T\nbase: {data: digits}\n"
        "rows: {narrow: {model: {class_path: MLP, init_args: {hidden: [9]}}}, wide: {model: MLP}}\n"
        "columns: {BP: {rule: BP}, DFA: {rule: DFA}}\n"
    )
    assert drawn(str(path)) == {"narrow": ["BP", "DFA"], "wide": ["BP", "DFA"]}


def test_columns_of_the_same_runs_have_one_page_of_curves() -> None:
    recipe = read(find("launay2020-table3"))
    cells = plan(recipe, recipe.scale("full"), 1, ["GraphConv BP", "GraphConv DFA"])
    assert list(page.groups(recipe, cells)) == ["Cora", "CiteSeer", "PubMed"]


def test_charts_of_one_quantity_have_one_axis_and_empty_ones_are_left_out() -> None:
    recipe = read(find("grape-figure2"))
    half = [entry for entry in entries(recipe) if not entry["column"].startswith("32")]
    marks = recipe_charts.legend(recipe)
    charts = recipe_charts.charts(recipe, half, marks)
    assert set(charts) == {title for title in recipe.charts if not title.startswith("32")}
    domains = {
        json.dumps(chart.to_dict()["layer"][-1]["encoding"]["y"]["scale"]["domain"]) for chart in charts.values()
    }
    assert len(domains) == 1
    # Nine columns and six hues: the same place in two charts has the same one, and no chart has one twice.
    hues = {mark.label: mark.light for mark in marks}
    colours = [[hues[column] for column in chart.columns] for chart in recipe.charts.values()]
    assert all(found == colours[0] for found in colours)
    assert len(set(colours[0])) == 3


def test_a_page_without_figures_carries_no_drawing_library() -> None:
    recipe = read(find("launay2019-table1"))
    text = page.html(recipe, "", entries(recipe), [], [])
    assert len(text) < 50_000
    assert "What filters look for" not in text
