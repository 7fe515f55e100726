"""benchmarks/graphs.py runs on a graph of no size; no time is looked at."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from support import tiny_graph

pytestmark = pytest.mark.models
pytest.importorskip("torch_geometric.nn", reason="needs torch_geometric: pip install bpfree[graphs]")

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_steps_and_epochs_stand_beside_torch_geometrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_graph.write(tmp_path / "graph")
    out = tmp_path / "graphs.json"
    options = ["--data-dir", tmp_path / "graph", "--pairs", 2, "--threads", 1, "--out", out]
    monkeypatch.setattr(sys, "argv", ["graphs.py", *map(str, options)])
    monkeypatch.syspath_prepend(FOLDER)
    from common import script

    for name, value in script.KEEP_MEMORY.items():  # without them it would start itself again
        monkeypatch.setenv(name, value)
    runpy.run_path(str(FOLDER / "graphs.py"), run_name="__main__")
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    found = [(row["net"], row["subject"], row["reference"]) for row in rows]
    assert found == [
        (f"{net}, cora", f"{rule}, {what}", f"torch_geometric, BP, {what}")
        for net in ("GCN", "ChebNet", "GAT")
        for what in ("step", "epoch")
        for rule in ("BP", "DFA")
    ]
    assert all(row["time"]["pairs"] == 2 for row in rows)
