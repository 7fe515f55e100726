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
import torch
from torchmetrics.functional.classification import binary_auroc

pl = pytest.importorskip("polars", reason="needs the extra [clicks] (polars)")
FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def click_log(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    from common import click_log

    return click_log


def measured(script: str, only: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The rows that a benchmark writes, by net and subject."""
    out, place = tmp_path / "rows.json", tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setenv("XDG_CACHE_HOME", "set by the benchmark, and back again")
    options = ["--quick", "--threads", "1", "--out", str(out), "--only", *only]
    monkeypatch.setattr(sys, "argv", [script, *options])
    from common import script as common_script

    for name, value in common_script.KEEP_MEMORY.items():  # without them it would start itself again
        monkeypatch.setenv(name, value)
    runpy.run_path(str(FOLDER / script), run_name="__main__")
    assert not list(place.glob("tmp*"))
    return {f"{row['net']}: {row['subject']}": row for row in json.loads(out.read_text(encoding="utf-8"))["rows"]}


def test_caching_reading_and_training_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, click_log: Any
) -> None:
    rows = measured("clicks.py", ["caching", "pass*", "training"], tmp_path, monkeypatch)
    subjects = ["caching", "caching, found again", "pass, batches of 512", "pass, batches of 2048"]
    subjects += ["training from the cache", "training, a pass"]
    assert list(rows) == [f"20,000 made-up rows: {subject}" for subject in subjects]
    for name, row in rows.items():
        if name.endswith("the cache"):
            assert row["time"]["median"] > 0
            continue
        assert row["rows_per_second"] > 0
        assert row["rows_per_cpu_second"] > 0
        assert row["resident_growth"] >= 0


def test_an_interaction_of_three_fields_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, click_log: Any
) -> None:
    rows = measured("click_training.py", ["third order"], tmp_path, monkeypatch)
    nets = [f"{net}: third order by {rule}" for net in ("DeepFM", "DeepCross") for rule in ("BP", "DFA")]
    assert list(rows) == ["the planted product: third order", "FM: third order by BP", *nets]
    assert rows["the planted product: third order"]["auc"] == pytest.approx(0.8808, abs=1e-4)
    for row in rows.values():
        assert row["reference"] == "2,000 rows, 5 passes"
        assert 0.3 < row["auc"] < 0.9


def test_torchfms_loop_trains_its_own_nets(tmp_path: Path, click_log: Any) -> None:
    pytest.importorskip("torchfm", reason="needs torchfm")
    pytest.importorskip("lmdb", reason="needs lmdb, in which torchfm keeps a log")
    from common import click_steps, torchfm_loop

    click_log.write_log(tmp_path / "log.txt", 500)
    data = torchfm_loop.data_set(tmp_path / "log.txt", tmp_path / "lmdb")
    for net, arguments in click_steps.SMALL.items():
        model = torchfm_loop.model(net, data.field_dims, arguments)
        before = [weight.clone() for weight in model.parameters()]
        sizes = []
        for batch in torchfm_loop.batches(data, 150, workers=0):
            torchfm_loop.stepping(model, 1e-6)(batch)
            sizes.append(len(batch[0]))
        assert sizes == [150, 150, 100]  # the training part
        assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_three_fields_decide_and_no_two_say_anything(click_log: Any) -> None:
    from common import third_order_log

    frame = third_order_log.frame(200_000, seed=3)
    label = frame["click"].to_numpy() - 0.5
    signs = [np.where(frame[f"C{number}"].to_numpy() < 5, 1, -1) for number in range(10)]
    for count in (1, 2, 3):
        for fields in itertools.combinations(range(10), count):
            found = abs((np.prod([signs[number] for number in fields], axis=0) * label).mean())
            assert found > 0.35 if fields == (0, 1, 2) else found < 0.01, fields
    score = torch.from_numpy(np.prod(signs[:3], axis=0)).float()
    auc = float(binary_auroc(score.sigmoid(), torch.from_numpy(label > 0).long()))
    assert auc == pytest.approx(third_order_log.best_auc(), abs=0.003)


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
