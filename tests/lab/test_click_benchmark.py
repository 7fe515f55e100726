"""benchmarks/clicks.py runs on a small log, whose interactions are planted as it says; no time is looked at."""

from __future__ import annotations

import itertools
import json
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pl = pytest.importorskip("polars", reason="needs the extra [clicks] (polars)")
FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def click_log(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    from common import click_log

    return click_log


def test_caching_and_reading_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, click_log: Any) -> None:
    out, place = tmp_path / "clicks.json", tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setenv("XDG_CACHE_HOME", "set by the benchmark, and back again")
    options = ["--quick", "--threads", "1", "--out", str(out), "--only", "caching", "pass*"]
    monkeypatch.setattr(sys, "argv", ["clicks.py", *options])
    from common import script

    for name, value in script.KEEP_MEMORY.items():  # without them it would start itself again
        monkeypatch.setenv(name, value)
    runpy.run_path(str(FOLDER / "clicks.py"), run_name="__main__")
    rows = {row["subject"]: row for row in json.loads(out.read_text(encoding="utf-8"))["rows"]}
    assert list(rows) == ["caching", "caching, found again", "pass, batches of 512", "pass, batches of 2048"]
    for row in rows.values():
        assert row["net"] == "20,000 made-up rows"
        assert row["rows_per_second"] > 0
        assert row["rows_per_cpu_second"] > 0
        assert row["resident_growth"] >= 0
    assert not list(place.glob("tmp*"))


def test_the_log_has_criteos_shape(click_log: Any, tmp_path: Path) -> None:
    click_log.write_log(tmp_path / "a.txt", 2500, seed=1)
    click_log.write_log(tmp_path / "b.txt", 2500, seed=1)
    assert (tmp_path / "a.txt").read_bytes() == (tmp_path / "b.txt").read_bytes()
    lines = (tmp_path / "a.txt").read_text().split("\n")
    assert len(lines) == 2501
    rows = [line.split("\t") for line in lines[:-1]]
    assert {len(row) for row in rows} == {40}
    assert {row[0] for row in rows} == {"0", "1"}
    shares = [sum(row[column] == "" for row in rows) / 2500 for column in range(1, 40)]
    assert np.allclose(shares, click_log.MISSING, atol=0.05)
    assert all(len(value) in (0, 8) for row in rows for value in row[14:])


def test_clicks_depend_on_the_products_of_signs_and_on_no_fewer_fields(click_log: Any) -> None:
    n = 400_000
    frame = pl.concat(list(click_log.frames(n, seed=0)))
    label = frame["label"].to_numpy() - frame["label"].mean()
    sign = {}
    for field in click_log.SECOND + click_log.THIRD:
        order = frame[field].drop_nulls().value_counts(sort=True)[field]
        known = dict(zip(order.to_list(), click_log.signs(field)[: len(order)], strict=True))
        # By its rank: the most frequent value is the first one; rare ones may be out of order, and count for little.
        sign[field] = np.array([known[value] for value in frame[field].to_list()])
        assert abs(sign[field].mean()) < 0.05
    for fields in (click_log.SECOND, click_log.THIRD):
        signs = [sign[field] for field in fields]
        assert (np.prod(signs, axis=0) * label).mean() > 0.08
        for few in itertools.combinations(signs, len(fields) - 1):
            assert abs((np.prod(few, axis=0) * label).mean()) < 0.01
