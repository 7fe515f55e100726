"""benchmarks/text.py runs on a text of no size, and leaves nothing behind; no time is looked at."""

from __future__ import annotations

import json
import runpy
import sys
import tempfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_tokenizing_passes_and_batches_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, place = tmp_path / "text.json", tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    options = ["--tokens", 40_000, "--vocabulary", 300, "--net", "2x16", "--pairs", 2, "--threads", 1, "--out", out]
    monkeypatch.setattr(sys, "argv", ["text.py", *map(str, options)])
    monkeypatch.syspath_prepend(FOLDER)
    from common import script

    for name, value in script.KEEP_MEMORY.items():  # without them it would start itself again
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    runpy.run_path(str(FOLDER / "text.py"), run_name="__main__")
    rows = {row["subject"]: row for row in json.loads(out.read_text(encoding="utf-8"))["rows"]}
    assert list(rows) == ["tokenizing", "pass, shuffled", "pass, streams", "batch, shuffled", "batch, streams"]
    for name, row in rows.items():
        assert row["net"] == "40,000 made-up tokens of 300"
        if name.startswith("batch"):
            assert (row["reference"], row["time"]["pairs"]) == ("step of BP, 2x16, 8 x 128", 2)
        else:
            assert row["tokens_per_second"] > 0
            assert row["resident_growth"] >= 0
    assert not list(place.glob("tmp*"))
