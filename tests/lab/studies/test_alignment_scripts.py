"""The scripts in experiments/ that say where alignment is lost, on a text of no size."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bpfree.lab.disk.files import read_json, write_json
from bpfree.lab.tables import result
from support import tiny_text

ROOT = Path(__file__).parents[3]
RECIPE = """
title: tiny
source: {paper: none}
base:
  data: text
  text: {vocabulary: 280, context: 16}
  model: {class_path: CausalTransformer, init_args: {blocks: 2, width: 16, hidden: 32, placement: micro}}
  steps: 4
  evaluations: 2
  batch_size: 8
  threads: 1
columns: {DFA: {rule: DFA, metric: perplexity}}
rows: {micro: {}}
scales: {full: {seeds: 1}}
"""


def printed(script: str, *options: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> list[str]:
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(sys, "argv", [script, *map(str, options)])
    module = __import__(f"experiments.{script}", fromlist=["main"])
    module.main()
    return capsys.readouterr().out.splitlines()


def test_limits_of_a_cell_are_printed(tmp_path: Path, monkeypatch, capsys) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE)
    where = {"monkeypatch": monkeypatch, "capsys": capsys}
    folder = tiny_text.folder(tmp_path / "text")
    options = ["--cell", "micro/DFA", "--scale", "full", "--data-dir", folder, "--runs", tmp_path / "runs"]
    lines = printed("alignment_limits", recipe, *options, **where)
    assert lines == printed("alignment_limits", recipe, *options, **where)  # the network that was kept
    gap = lines.index("")
    taps = [f"blocks.{block}.{name}" for block in (0, 1) for name in ("norm1_tap", "feed_forward.hidden_tap", "tap")]
    assert [line.split()[0] for line in lines[2:gap]] == taps
    assert [line.split()[0] for line in lines[gap + 3 :]] == ["norm1_tap", "feed_forward.hidden_tap", "tap"]
    (record,) = (tmp_path / "runs").glob("*.json")
    text = printed("where_alignment_is_lost", record, **where)
    assert next(line for line in text if "evaluation" in line).endswith("cosine_mean after evaluation 2")
    assert ["tap", "layer", "1", "layer", "2", "mean"] in [line.split() for line in text]
    document = {"format": result.FORMAT, "name": "tiny", "records": [read_json(record)]}
    assert printed("where_alignment_is_lost", result.write(document, tmp_path), **where) == text


def test_a_file_without_alignment_says_so(tmp_path: Path, monkeypatch, capsys) -> None:
    write_json(tmp_path / "a.json", {"label": "BP", "seed": 0, "epochs": [{"epoch": 1, "alignment": []}]})
    lines = printed("where_alignment_is_lost", tmp_path / "a.json", monkeypatch=monkeypatch, capsys=capsys)
    assert lines == ["No run of this file has alignment: it was never measured, or the labels are others."]
