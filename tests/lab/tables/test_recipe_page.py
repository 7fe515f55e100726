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

import vl_convert
from PIL import Image

from bpfree.lab import data
from bpfree.lab.recipe.locate import find
from bpfree.lab.recipe.reading import read
from bpfree.lab.recipe.schema import Chart, Recipe
from bpfree.lab.report import recipe_charts
from bpfree.lab.report.alignment import curves
from bpfree.lab.report.charts import finish
from bpfree.lab.report.picture import vega_lite
from bpfree.lab.report.text import with_code
from bpfree.lab.tables import recipe_page
from bpfree.lab.tables.cells import plan
from bpfree.lab.tables.command_options import ReportOptions, TableOptions
from bpfree.lab.tables.table import table
from support import browser, tiny_lab

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
    found = visited(chromium, tmp_path, recipe_page.html(recipe, "", entries(recipe, 0.02), [], []))
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
    text = recipe_page.html(recipe, "", entries(recipe), [], [])
    assert "paper&#39;s" not in text.partition("</table>")[0].partition("<table")[2]
    found = visited(chromium, tmp_path, text)
    assert [len(chart["points"]) for chart in found["charts"].values()] == [30] * len(recipe.charts)
    assert all(chart["lines"] == 3 for chart in found["charts"].values())


def test_pictures_of_filters_are_shown(chromium: str, tmp_path: Path) -> None:
    recipe = read(find("launay2019-table3"))
    shown = [{"label": rule, **_picture()} for rule in ("BP", "DFA")]
    found = visited(chromium, tmp_path, recipe_page.html(recipe, "", entries(recipe), [], [], shown))
    assert [size[:2] for size in found["pictures"]] == [[20, 12]] * 2
    assert min(width for *_, width in found["pictures"]) > 200
    assert not found["charts"]


def test_filters_of_a_table_come_from_its_first_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.DATA_SETS, "tiny", lambda folder: tiny_lab.splits())
    monkeypatch.chdir(tmp_path)
    Path("pictured.yaml").write_text(
        "title: T\nbase:\n  data: tiny\n  model: {class_path: LeNet4, init_args: {channels: [4, 6]}}\n"
        "  epochs: 1\n  alignment: never\n  visualize: conv2.conv\n"
        "rows: {BP: {rule: BP}, DFA: {rule: DFA}}\ncolumns: {accuracy: {}}\nscales: {full: {seeds: 2}}\n"
    )
    records = table(TableOptions(name="pictured.yaml"))["records"]
    shown = {record["label"]: record["visualized"]["png"] for record in records if record["seed"] == 0}
    text = recipe_page.report(ReportOptions(name="pictured.yaml")).read_text(encoding="utf-8")
    assert re.findall(r'src="data:image/png;base64,([^"]*)"', html.unescape(text)) == [shown["BP"], shown["DFA"]]
    # Another table that has the same runs calls them by its own rows.
    Path("other.yaml").write_text(Path("pictured.yaml").read_text().replace("{BP: {rule", '{"up": {rule'))
    text = recipe_page.report(ReportOptions(name="other.yaml")).read_text(encoding="utf-8")
    assert re.findall(r"<figcaption>(.*?)</figcaption>", text) == ["up", "DFA"]


CURVES = """
title: Two widths
base: {data: tiny, rule: BP, alignment: never, epochs: 2}
rows:
  narrow: {model: {class_path: MLP, init_args: {hidden: [8]}}, validation: 60}
  wide: {model: {class_path: MLP, init_args: {hidden: [16]}}, validation: 30}
columns: {accuracy: {}}
scales: {full: {seeds: 1}, short: {seeds: 1, epochs: 1, cut: 1 of 2 epochs}}
"""


def test_a_page_of_curves_says_what_its_rows_have_in_common_and_how_to_repeat_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(data.DATA_SETS, "tiny", lambda folder: tiny_lab.splits())
    monkeypatch.chdir(tmp_path)
    Path("widths.yaml").write_text(CURVES)
    for row, seeds in (("narrow", 1), ("wide", 2)):
        table(TableOptions(name="widths.yaml", scale="short", seeds=seeds, cell=[row]))
    shown = recipe_page.report(ReportOptions(name="widths.yaml", scale="short")).read_text(encoding="utf-8")
    page = Path("results/widths-curves.html").read_text(encoding="utf-8")
    # 64 x 8 + 8 + 8 x 4 + 4 and 64 x 16 + 16 + 16 x 4 + 4; 180 and 210 of 240 images are trained on.
    lead = re.search(r'<p class="lead">(.*?)</p>', page, re.DOTALL)[1]
    assert lead == (
        "Models of 556 to 1,108 parameters, trained on tiny in 2 rows (1 to 2 seeds, 1 epoch each); accuracy is "
        "measured on validation images after the last epoch. <strong>Cut: 1 of 2 epochs.</strong>"
    )
    for text in (shown, page):
        command = re.search(r'<code id="command">(.*?)</code>', text, re.DOTALL)[1]
        assert re.sub("<.*?>", "", command) == "bpfree table widths.yaml --scale short"
    for absent in ("Recovery", "recovery ratio", "÷ BP", "each rule", "n train", "n eval"):
        assert absent not in page.partition("<script")[0]


@pytest.mark.parametrize(
    ("taps", "shown"),
    [
        ((["a.act", "b.act"], ["a.act", "b.act"]), ["Tap a.act", "Tap b.act"]),
        ((["a.act", "b.act"], []), ["Tap a.act", "Tap b.act"]),
        ((["a.act", "b.act"], ["a.drop", "b.act"]), ["Tap 1", "Tap 2"]),
        ((["h.0.norm", "h.0.act", "h.1.norm", "h.1.act"],) * 2, ["norm", "act", "Layer 1", "Layer 2"]),
    ],
)
def test_taps_have_their_modules_names_where_all_runs_have_the_same(taps: Any, shown: list[str]) -> None:
    runs = [
        {"label": label, "epochs": [{"epoch": 1, "alignment": [{"name": name, "cosine_mean": 0.5} for name in names]}]}
        for label, names in zip("XY", taps, strict=True)
    ]
    named = recipe_page._with_taps_of_one_name(runs)
    comparison = {"runs": named, "summary": [{"label": label} for label in "XY"], "settings": {}}
    assert list(curves(comparison)) == shown


def test_commands_in_remarks_are_code_and_nothing_else_is_markup() -> None:
    assert str(with_code("A `<b>` & `c d`.")) == "A <code>&lt;b&gt;</code> &amp; <code>c d</code>."


def test_rows_whose_letters_are_the_same_have_pages_of_their_own() -> None:
    recipe = read(find("launay2019-table2"))
    rows = {name: {} for name in ("x(-0.5)", "x(+0.5)", "curves", "X--0-5-")}
    files = recipe_page._file_names(replace(recipe, name="t", rows=rows, columns={}))
    assert list(files.values()) == ["t-curves.html", "t-x--0-5-.html", "t-x--0-5--2.html", "t-X--0-5--3.html"]


def test_a_cell_of_other_seeds_than_its_row_says_so() -> None:
    recipe = read(find("launay2019-table1"))
    shown = entries(recipe)
    shown[0] |= {"mean": 49.0, "std": 1.0, "seeds": 3}
    shown[1] |= {"mean": 7.0, "std": 2.0, "seeds": 5}
    text = recipe_page.html(recipe, "", shown, [], [])
    assert "49.00 ± 1.00 (3)" in text
    assert "7.00 ± 2.00<" in text
    assert "<td>5</td>" in text


def test_a_columns_tolerance_stands_below_its_name() -> None:
    recipe = read(find("launay2020-table3"))
    text = recipe_page.html(recipe, "", entries(recipe), [], [])
    assert text.count("<small>−1.5/+∞</small>") == 3  # of six columns three have published numbers
    assert '<th scope="col">Cora<br><small>−1.5/+∞</small></th>' in text
    text = recipe_page.html(read(find("launay2019-table2")), "", entries(read(find("launay2019-table2"))), [], [])
    assert '<th scope="col">alignment 1<br><small>± 0.1</small></th>' in text


def test_seeds_that_failed_are_told() -> None:
    recipe = read(find("launay2019-table1"))
    shown = entries(recipe)
    shown[0] |= {"mean": 49.0, "std": None, "seeds": 1, "failed": 4}
    assert "49.00 (4 of 5 seeds failed)" in recipe_page.html(recipe, "", shown, [], [])


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
        return {group: list(found) for group, found in recipe_page.groups(recipe, cells).items()}

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
    assert list(recipe_page.groups(recipe, cells)) == ["Cora", "CiteSeer", "PubMed"]


def test_charts_of_one_quantity_have_one_axis_and_empty_ones_are_left_out() -> None:
    recipe = read(find("grape-figure2"))
    half = [entry for entry in entries(recipe) if not entry["column"].startswith("32")]
    charts = recipe_charts.charts(recipe, half)
    assert set(charts) == {title for title in recipe.charts if not title.startswith("32")}
    domains = {
        json.dumps(chart.to_dict()["layer"][-1]["encoding"]["y"]["scale"]["domain"]) for chart in charts.values()
    }
    assert len(domains) == 1


def test_a_chart_and_its_key_agree_on_every_column() -> None:
    recipe = read(find("launay2019-figure4"))
    names = ["bottleneck", "Shallow", "BP", "alignment 1", "train accuracy", "test accuracy"]
    columns = {name: next(iter(recipe.columns.values())) for name in names}
    columns = {name: replace(column, name=name) for name, column in columns.items()}
    charts = {"six": Chart(names, "x", "y"), "two": Chart(names[1::-1], "x", "z")}
    changed = replace(recipe, columns=columns, charts=charts, expected={})
    text = recipe_page.html(changed, "", entries(changed), [], [])
    keys = re.findall(r'<p class="key">(.*?)</p>', text, re.DOTALL)
    specs = json.loads(re.search(r'<script type="application/json" id="specs">(.*?)</script>', text, re.DOTALL)[1])
    assert len(keys) == len(specs) == 2
    for key, spec in zip(keys, specs.values(), strict=True):
        strokes = re.findall(r'stroke="(.*?)".*?stroke-dasharray="(.*?)".*?</svg>\s*(.*?)</span>', key, re.DOTALL)
        scale = spec["layer"][-1]["encoding"]["color"]["scale"]
        assert [(hue, name) for hue, _, name in strokes] == list(zip(scale["range"], scale["domain"], strict=True))
        assert len(set(scale["range"])) == len(scale["domain"])
        # Solid, as the curves are: dashed ones are the paper's.
        assert {dash for _, dash, _ in strokes} == {"1 0"}
        assert "strokeDash" not in spec["layer"][-2]["mark"]


def test_a_line_is_broken_where_nothing_was_measured() -> None:
    recipe = read(find("launay2019-figure4"))
    shown = entries(recipe, 0.02)
    # Of 14 sizes these: one alone, four together, one alone.
    for entry in shown:
        if entry["row"] not in ("1", "8", "11", "18", "28", "800"):
            entry |= {"mean": None, "std": None}
    chart = recipe_charts.charts(recipe, shown)["Accuracy"].properties(width=600)
    drawn = vl_convert.vegalite_to_svg(finish(chart, recipe_charts.STYLE).to_dict(), vl_version=vega_lite())
    lines = re.findall(r'<g class="mark-line.*?</g>', drawn, re.DOTALL)
    paths = [path for line in lines for path in re.findall(r' d="(.*?)"', line)]
    # The paper's two lines have all 14 points; the measured ones three pieces, of which one has a length.
    assert sorted((path.count("M"), path.count("L")) for path in paths) == [(1, 13), (1, 13), (3, 3), (3, 3)]
    points = re.findall(r'aria-roledescription="point"|<g class="mark-symbol.*?</g>', drawn, re.DOTALL)
    assert sum(point.count("<path") for point in points) == 2 * (14 + 6)


def test_a_page_without_figures_carries_no_drawing_library() -> None:
    recipe = read(find("launay2019-table1"))
    text = recipe_page.html(recipe, "", entries(recipe), [], [])
    assert len(text) < 50_000
    assert "What filters look for" not in text
