"""The report in headless Chromium, where one is installed: it draws, answers, and does not complain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

from bpfree.lab.report import write
from support import browser, fake_comparison

# Run after the page's own scripts: counts what is drawn, points at a curve, chooses DFA in the legend.
PROBE = """
<script>
addEventListener("load", async () => {
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  for (let i = 0; i < 200 && document.documentElement.dataset.charts !== "drawn"; i++) await wait(50);
  const found = { charts: {}, wide: document.documentElement.scrollWidth - innerWidth };
  for (const chart of all(".vega")) {
    const box = chart.querySelector("svg").getBoundingClientRect();
    found.charts[chart.id] = {
      size: [box.width, box.height],
      lines: all(".mark-line path", chart).length,
      dots: all(".mark-symbol path", chart).length,
      broken: /NaN|undefined/.test(chart.innerHTML),
    };
  }
  const cell = document.querySelector("#learning-0 [class*=voronoi] path");
  const box = cell.getBoundingClientRect();
  const at = { bubbles: true, clientX: box.x + box.width / 2, clientY: box.y + box.height / 2 };
  for (const type of ["pointerover", "pointermove"]) cell.dispatchEvent(new PointerEvent(type, at));
  await wait(200);
  found.tooltip = all("#vg-tooltip-element.visible tr").map((row) => all("td", row).map((td) => td.innerText));
  const visible = () => all(".mark-line path").filter((path) => (path.getAttribute("opacity") ?? 1) > 0.5).length;
  found.before = visible();
  document.querySelector('.legend button[data-rule="DFA"]').click();
  await wait(500);
  found.after = visible();
  document.body.dataset.found = JSON.stringify(found);
});
</script>
"""
LABELS = ["BP", "Shallow", "DFA", "FA"]
POINTS = 60
EPOCHS = 4


def probed(chromium: str, folder: Path) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """What the probe found, what the console heard, and the comparison drawn."""
    comparison = fake_comparison.comparison(labels=LABELS, epochs=EPOCHS, seeds=2, n_points=POINTS)
    path = write(comparison, folder / "report.html")
    return *browser.probed(chromium, path, PROBE), comparison


def test_a_browser_draws_every_chart_without_a_complaint(chromium: str, tmp_path: Path) -> None:
    found, console, comparison = probed(chromium, tmp_path)
    assert console == []
    assert found, "the page's scripts did not finish"
    charts = found["charts"]
    # Two learning curves of all rules; two taps without Shallow, which has no cosine; one cloud a rule.
    lines = {"learning-0": 4, "learning-1": 4, "alignment-0": 3, "alignment-1": 3}
    assert set(charts) == {*lines, *(f"hidden-{i}" for i in range(4))}
    for name, chart in charts.items():
        assert chart["lines"] == lines.get(name, 0), name
        assert chart["dots"] == (EPOCHS * lines[name] if name in lines else POINTS), name
        assert min(chart["size"]) > 100, name
        assert not chart["broken"], name
    assert found["wide"] <= 0, "the page is wider than the window"
    assert (found["before"], found["after"]) == (4 + 4 + 3 + 3, 4)
    tooltip = dict(found["tooltip"])
    assert tooltip["rule"] in LABELS
    scores = [
        run["epochs"][int(tooltip["epoch"]) - 1]["eval_accuracy"]
        for run in comparison["runs"]
        if run["label"] == tooltip["rule"]
    ]
    assert float(tooltip["mean"]) == pytest.approx(sum(scores) / len(scores), abs=0.02)
    assert float(tooltip["highest seed"]) == pytest.approx(max(scores), abs=0.02)


def test_the_browser_test_would_hear_a_complaint(chromium: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.html"
    path.write_text("<script>nowhere.to.be.found()</script>", encoding="utf-8")
    seen = browser.visit(chromium, path, tmp_path / "profile")
    assert any("nowhere is not defined" in line for line in seen.console)
