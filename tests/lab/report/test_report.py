"""The report: one page that holds everything, says everything, and draws in a real browser."""

from __future__ import annotations

import base64
import copy
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

import jsonschema
import numpy as np
from altair.vegalite.v6.schema import load_schema
from PIL import Image

from bpfree.errors import BpfreeError
from bpfree.lab.report import ReportError, panels, picture, series, style, tables, write
from bpfree.lab.report import text as words
from bpfree.lab.report.filters import filters
from bpfree.lab.report.picture import WIDTH, legend
from support import fake_comparison

LIMIT = 3 * 10**6


class Parsed(HTMLParser):
    """Elements with their attributes, and the text of the page without scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.styles: list[str] = []
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        {"script": [], "style": self.styles}.get(self.inside, self.text).append(data)


def read(comparison: dict[str, Any], folder: Path) -> tuple[str, Parsed]:
    page = write(comparison, folder / "report.html").read_text(encoding="utf-8")
    return page, Parsed(page)


def specs(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="specs">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def spec_rows(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return spec["datasets"][spec["data"]["name"]] if "datasets" in spec else spec["data"]["values"]


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    return fake_comparison.comparison(epochs=4, seeds=2, n_points=60)


@pytest.fixture(scope="module")
def page(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    return read(small, tmp_path_factory.mktemp("report"))[0]


def test_a_page_holds_everything_it_needs(page: str) -> None:
    parsed = Parsed(page)
    assert ("html", {"lang": "en"}) in parsed.elements
    for tag, attributes in parsed.elements:
        assert tag not in ("iframe", "object", "embed", "base"), tag
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            value = attributes.get(name) or "data:"
            assert value.startswith(("data:", "#")), (tag, name, value[:80])
    assert parsed.styles
    assert not re.search(r"@import|url\(|https?:", "".join(parsed.styles))


def test_every_chart_keeps_to_the_schema(page: str) -> None:
    schema = jsonschema.Draft7Validator(load_schema())
    for spec in specs(page).values():
        schema.validate(spec)
    spec["layer"][0]["mark"] = "no such mark"
    assert not schema.is_valid(spec)


def test_every_picture_has_a_text(page: str) -> None:
    elements = Parsed(page).elements
    pictures = [a for tag, a in elements if tag == "img"]
    charts = [a for tag, a in elements if a.get("class") == "vega"]
    assert len(pictures) == 6
    assert len(charts) == len(specs(page)) == 2 + 2 + 6
    assert all(a.get("alt") for a in pictures)
    assert all(a.get("role") == "img" and a.get("aria-label") for a in charts)


def test_every_rule_number_and_setting_is_on_the_page(small: dict[str, Any], page: str) -> None:
    text = " ".join("".join(Parsed(page).text).split())
    for row in small["summary"]:
        assert row["label"] in text
        assert f"{row['accuracy_mean']:.2f} ± {row['accuracy_std']:.2f}" in text
        assert f"{row['peak_memory_bytes'] / 1024**2:.1f}" in text
        assert f"{row['feedback_bytes'] / 1024**2:.2f}" in text
    for tap in small["summary"][0]["alignment"]:
        assert f"Tap {tap['name']}" in text
    for expected in (
        small["command"],
        *small["data"]["checksums"].values(),
        "2.13.0",
        "21 November 2026",
        "0.0005",
    ):
        assert expected in text
    assert "Left out, having no valid cosine: Shallow." in text


def test_the_largest_comparison_stays_below_three_megabytes(tmp_path: Path) -> None:
    large = fake_comparison.comparison(labels=list(fake_comparison.RULES), seeds=10, epochs=100, taps=4, n_points=500)
    page, _ = read(large, tmp_path)
    assert len(page.encode()) < LIMIT
    # Sixteen taps over 300 epochs have more points than a page can hold: some are left out, the ends are not.
    deep = fake_comparison.comparison(labels=list(fake_comparison.RULES), seeds=1, epochs=300, taps=4, n_points=500)
    for run in deep["runs"]:
        for epoch in run["epochs"]:
            epoch["alignment"] = [{**tap, "name": f"{tap['name']}.{i}"} for tap in epoch["alignment"] for i in range(4)]
    page, _ = read(deep, tmp_path)
    assert len(page.encode()) < LIMIT
    epochs = {row["epoch"] for row in spec_rows(specs(page)["learning-0"])}
    assert {1, 300} <= epochs


def test_curves_are_mean_and_range_over_seeds(small: dict[str, Any]) -> None:
    rows = series.rows(small, series.metric("eval_accuracy"))
    assert len(rows) == 6 * 4
    for row in rows:
        found = [r["epochs"][row["epoch"] - 1]["eval_accuracy"] for r in small["runs"] if r["label"] == row["rule"]]
        expected = (np.mean(found), min(found), max(found))
        assert np.allclose((row["mean"], row["low"], row["high"]), expected, rtol=1e-3)


def test_numbers_have_the_digits_of_their_metric(small: dict[str, Any], tmp_path: Path) -> None:
    links = copy.deepcopy(small) | {"task": "links"}
    for row in links["summary"]:
        row.update(auc_mean=0.9184 if row["label"] == "BP" else 0.9151, auc_std=0.0123)
    for run in links["runs"]:
        for epoch in run["epochs"]:
            epoch["eval_auc"] = 0.9
    text = " ".join("".join(read(links, tmp_path)[1].text).split())
    assert "0.918 ± 0.012" in text
    assert "AUC 0.915 against 0.918" in text


def test_the_legend_of_a_picture_takes_as_many_lines_as_it_needs() -> None:
    labels = [f"a row of a table, number {number}" for number in range(39)]
    found = legend(style.on_paper(style.marks(labels, {}))).to_dict()
    assert found["width"] == WIDTH
    lines: dict[int, list[dict[str, Any]]] = {}
    for row in spec_rows(found):
        lines.setdefault(row["line"], []).append(row)
    assert [row["rule"] for line in lines.values() for row in line] == labels
    for line in lines.values():
        # A letter of 13 pixels is about half as wide.
        ends = [row["end"] + 6.5 * len(row["rule"]) for row in line]
        assert all(end <= row["x"] for end, row in zip(ends, line[1:], strict=False))
        assert ends[-1] <= WIDTH
    assert found["height"] >= 16 * len(lines)


def test_text_from_outside_is_escaped(small: dict[str, Any], tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
    bad = copy.deepcopy(small)
    bad["command"] = bad["data"]["name"] = bad["environment"]["python"] = evil
    bad["data"]["checksums"] = {evil: evil}
    bad["settings"]["rules"][evil] = bad["settings"]["rules"].pop("DFA")
    for record in (*bad["runs"], *bad["summary"]):
        record["label"] = evil if record["label"] == "DFA" else record["label"]
        for epoch in record.get("epochs", []):
            epoch["alignment"][0]["name"] = evil
        if "alignment" in record:
            record["alignment"][0]["name"] = evil
    page, parsed = read(bad, tmp_path)
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert page.count("</script>") == 3
    assert evil in "".join(parsed.text)
    assert evil in {row["rule"] for row in spec_rows(specs(page)["learning-0"])}


def test_missing_values_become_dashes(small: dict[str, Any], tmp_path: Path) -> None:
    bare = copy.deepcopy(small)
    for row in bare["summary"]:
        row.update(accuracy_std=None, recovery=None, time_relative_to_bp=float("nan"), peak_memory_bytes=None)
        del row["feedback_bytes"]  # of a comparison that did not measure it
        row["alignment"] = [{"name": "1", "cosine_mean": None}]
    for run in bare["runs"]:
        run.update(filters=None, filters_shape=None, embedding=None, parameters=None)
        for epoch in run["epochs"]:
            epoch.update(train_loss=float("inf"), alignment=[])
    bare["environment"] = {"processor": None, "nested": {"a": float("nan"), "b": None}}
    bare["data"]["checksums"] = {}
    bare["settings"]["rules"]["DFA"]["lr"] = None
    page, parsed = read(bare, tmp_path)
    text = "".join(parsed.text)
    assert not re.search(r"null|None|\bnan\b|undefined|\binf\b", text, re.IGNORECASE)
    assert "–" in text
    assert "No valid cosine was measured" in text
    assert list(specs(page)) == ["learning-0"]
    assert picture(bare, tmp_path / "bare.png").exists()


def test_a_comparison_without_any_run_is_still_a_page(small: dict[str, Any], tmp_path: Path) -> None:
    empty = {**small, "runs": [], "summary": [], "environment": {}, "data": {"name": "none"}, "command": None}
    page, parsed = read(empty, tmp_path)
    assert specs(page) == {}
    assert "No epoch was recorded." in "".join(parsed.text)
    assert picture(empty, tmp_path / "empty.png").exists()


@pytest.mark.parametrize("wrong", [{}, {"format": "bpfree-comparison/2"}])
def test_another_format_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="bpfree-comparison/1"):
        write(wrong, tmp_path / "report.html")
    with pytest.raises(BpfreeError, match="bpfree-comparison/1"):
        picture(wrong, tmp_path / "report.png")
    assert not list(tmp_path.iterdir())


def test_the_picture_is_drawn(small: dict[str, Any], tmp_path: Path) -> None:
    with Image.open(picture(small, tmp_path / "new" / "report.png")) as image:
        assert image.format == "PNG"
        assert image.width >= 1200
        pixels = np.asarray(image.convert("RGB"), dtype=int)
    assert tuple(pixels[0, 0]) == (255, 255, 255)
    for mark in style.marks([row["label"] for row in small["summary"]], small["settings"]["rules"]):
        ink = [int(mark.light[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - ink).max(-1) < 12).sum() > 100, mark.label


def test_each_rule_keeps_one_look() -> None:
    labels = [f"rule {i}" for i in range(14)]
    kinds = {"rule 3": {"rule": "BP"}, "rule 5": {"rule": "Shallow"}}
    found = style.marks(labels, kinds)
    assert len({(mark.light, mark.dash) for mark in found}) == len({(m.dark, m.dash) for m in found}) == 14
    alone = style.marks(["rule 3"], kinds)[0]
    assert (alone.light, alone.dash) == (found[3].light, found[3].dash)


def test_no_two_rules_look_alike_however_many_there_are() -> None:
    labels = [f"BP, {i}" for i in range(5)] + [f"Shallow, {i}" for i in range(3)] + [f"rule {i}" for i in range(42)]
    found = style.marks(labels, {label: {"rule": label.partition(",")[0]} for label in labels})
    assert len({(mark.light, mark.dash) for mark in found}) == len({(m.dark, m.dash) for m in found}) == 50
    # Of each kind the first one alone is drawn as the reference and as the control are.
    looks = [(mark.light, mark.dark, mark.dash) for mark in found]
    assert [looks.index(style.REFERENCE), looks.index(style.CONTROL)] == [0, 5]
    assert {mark.light for mark in found[1:5]} == set(style.LIGHT[:4])


def test_filters_are_blue_below_zero_and_red_above() -> None:
    found = filters([[-2.0, 0.0, 2.0, 0.0]] * 5, [2, 2])
    assert found is not None
    # Five filters of 2 x 2 in columns of four, with gaps of one pixel.
    assert (found.width, found.height, found.n) == (4 * 3 - 1, 2 * 3 - 1, 5)
    assert math.isclose(found.limit, 2.0)
    with Image.open(io.BytesIO(base64.b64decode(found.uri.split(",")[1]))) as image:
        pixels = np.asarray(image).astype(int)
    negative, zero, positive, gap = pixels[0, 0], pixels[0, 1], pixels[1, 0], pixels[0, 2]
    assert negative[2] > negative[0] + 80
    assert positive[0] > positive[2] + 80
    assert np.ptp(zero[:3]) == 0
    assert zero[0] > 240
    assert gap[3] == 0
    assert filters(None, None) is None
    assert filters([[1.0, 2.0]], [2]) is None


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (97.934, 2, "97.93"),
        (-0.004, 2, "0.00"),
        (-0.5, 1, "−0.5"),
        (None, 2, "–"),
        (math.nan, 2, "–"),
        (12345.6, 0, "12,346"),
    ],
)
def test_numbers_are_written_as_people_read_them(value: float | None, digits: int, expected: str) -> None:
    assert words.number(value, digits) == expected


@pytest.mark.parametrize(("low", "high"), [(0, 100), (10, 98.3), (55.2, 61.3), (97.4, 98.3), (99.91, 99.99)])
def test_accuracy_ticks_lie_in_the_range_and_suffice(low: float, high: float) -> None:
    ticks = panels.accuracy_ticks(low, high)
    assert len(ticks) >= 4
    assert all(low <= tick <= high for tick in ticks)


@pytest.mark.parametrize(("low", "high"), [(1e-6, 0.5), (0.24, 2.3), (0.24, 0.28), (0.02, 0.7)])
def test_loss_ticks_lie_in_the_range_and_suffice(low: float, high: float) -> None:
    ticks = panels.log_ticks(low, high)
    assert len(ticks) >= 4
    assert all(low <= tick <= high for tick in ticks)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            {"error": "sign", "feedback": {"scale": 0.1, "share": True}},
            "error = sign, feedback = (scale = 0.1, share = yes)",
        ),
        ({"hidden": [1024, 1024], "dropout": None}, "hidden = [1024, 1024], dropout = –"),
        ([0, 1, 2], "0, 1, 2"),
        ({}, "–"),
    ],
)
def test_settings_are_written_in_one_line(value: object, expected: str) -> None:
    assert words.setting(value) == expected


def test_nested_settings_keep_their_names() -> None:
    found = tables.pairs({"model": {"class_path": "MLP", "init_args": {"hidden": [8, 8]}}, "epochs": 3})
    assert found == [("model · class path", "MLP"), ("model · hidden", "8, 8"), ("epochs", "3")]


def test_epochs_are_whole_numbers(small: dict[str, Any], page: str) -> None:
    for chart in (chart for name, chart in specs(page).items() if not name.startswith("hidden")):
        assert chart["layer"][-1]["encoding"]["x"]["axis"]["values"] == [1, 2, 3, 4]
