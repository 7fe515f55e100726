"""The page of language models: many taps by kind and by layer, and the text that models wrote."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

from bpfree.lab.report import alignment, picture, write
from support import browser, fake_comparison
from support.fake_language_comparison import EVALUATIONS, KINDS, LABELS, LAYERS, PROMPT, TAPS, comparison, cosine

PROBE = """
<script>
addEventListener("load", async () => {
  for (let i = 0; i < 200 && document.documentElement.dataset.charts !== "drawn"; i++)
    await new Promise((done) => setTimeout(done, 50));
  const lines = {};
  for (const chart of document.querySelectorAll(".vega"))
    lines[chart.id] = chart.querySelectorAll(".mark-line path").length;
  const details = [...document.querySelectorAll("details")];
  const shown = () => details.map((one) => one.querySelector(".text").checkVisibility());
  const closed = shown();
  details.forEach((one) => { one.open = true; });
  const wide = document.documentElement.scrollWidth - innerWidth;
  document.body.dataset.found = JSON.stringify({lines, closed, open: shown(), wide});
});
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(comparison(), tmp_path_factory.mktemp("page") / "report.html").read_text(encoding="utf-8")


def read(page: str) -> str:
    """What a reader sees of it."""
    shown = re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)
    return html.unescape(" ".join(shown.split()))


@pytest.mark.parametrize(
    ("taps", "kinds"),
    [
        (["blocks.0.tap", "blocks.1.tap"], {}),  # one kind: a chart for each
        (["1", "3", "5"], {}),
        (["features.0", "features.3", "classifier.0", "classifier.3"], {}),  # two lists of layers
        (["blocks.0.norm_tap", "blocks.0.tap"], {}),  # one layer
        (
            ["blocks.0.a.b", "blocks.0.tap", "blocks.1.a.b", "blocks.1.tap", "above"],
            {"a.b": {1: "blocks.0.a.b", 2: "blocks.1.a.b"}, "tap": {1: "blocks.0.tap", 2: "blocks.1.tap"}},
        ),
    ],
)
def test_taps_are_put_together_by_kind_where_layers_have_several(taps: list[str], kinds: dict[str, Any]) -> None:
    assert alignment.by_kind(taps) == kinds


def mean(label: str, taps: list[str], epoch: int) -> float:
    found = [cosine(label, tap, epoch) or 0.0 for tap in taps]
    return sum(found) / len(found)


def test_a_chart_shows_a_kind_or_a_layer_over_training(page: str) -> None:
    charts = json.loads(page.partition('id="specs">')[2].partition("</script>")[0])
    titles = ["Tap embedding_tap", *KINDS, *(f"Layer {layer + 1}" for layer in range(LAYERS))]
    shown = re.findall(r'<figcaption>(.*?)</figcaption>\s*<div id="(alignment-\d+)"', page)
    assert [title for title, _ in shown] == titles
    for title, id in shown:
        chosen = [tap for tap in TAPS if tap.endswith(f".{title}") or tap == title.removeprefix("Tap ")]
        if title.startswith("Layer"):
            chosen = [tap for tap in TAPS if tap.startswith(f"blocks.{int(title[-1]) - 1}.")]
        (rows,) = charts[id]["datasets"].values() if "datasets" in charts[id] else [charts[id]["data"]["values"]]
        assert len(rows) == 3 * EVALUATIONS  # Shallow has no cosine
        for row in rows:
            assert row["mean"] == pytest.approx(mean(row["rule"], chosen, row["epoch"]), rel=1e-3), title


def test_the_end_is_told_by_layer_and_by_kind(page: str) -> None:
    text = read(page)
    assert "Mean alignment by kind of tap" in text
    for label in ("DFA", "FDFA"):
        for kind in KINDS:
            cells = [mean(label, [f"blocks.{layer}.{kind}"], EVALUATIONS) for layer in range(LAYERS)]
            assert " ".join([kind, *(f"{cell:.2f}" for cell in cells)]) in text
            of_kind = mean(label, [tap for tap in TAPS if tap.endswith(f".{kind}")], EVALUATIONS)
            assert f"{of_kind:.2f}" in text


def test_each_rules_text_is_there_the_last_first(page: str) -> None:
    text = read(page)
    assert "at temperature 0.8 with seed 0" in text
    assert text.count(" ".join(PROMPT.split())) == len(LABELS) * EVALUATIONS
    steps = re.findall(r"Step (\d+), perplexity", text)
    assert steps == [str(100 * epoch) for epoch in range(EVALUATIONS, 0, -1)] * len(LABELS)
    assert "<b>3</b> & {more}" in text  # as it was written, and no markup
    assert "<b>3</b>" not in page.partition('id="samples"')[2]


def test_comparisons_without_text_have_no_such_part(tmp_path: Path) -> None:
    made = comparison()
    for run in made["runs"]:
        for epoch in run["epochs"]:
            epoch.pop("sample", None)
    assert "Sampled text" not in write(made, tmp_path / "report.html").read_text(encoding="utf-8")
    pictures = fake_comparison.comparison(labels=["BP", "DFA"], seeds=1, epochs=2)
    assert "Sampled text" not in write(pictures, tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    assert picture(comparison(), tmp_path / "report.png").stat().st_size > 10_000


def test_a_browser_draws_it_and_opens_earlier_texts(chromium: str, tmp_path: Path) -> None:
    found, console = browser.probed(chromium, write(comparison(), tmp_path / "report.html"), PROBE)
    assert console == []
    aligned = {f"alignment-{i}": 3 for i in range(1 + len(KINDS) + LAYERS)}
    assert found["lines"] == {"learning-0": 4, "learning-1": 4} | aligned
    assert (found["closed"], found["open"]) == ([False] * len(LABELS), [True] * len(LABELS))
    assert found["wide"] <= 0
