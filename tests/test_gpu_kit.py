"""benchmarks/gpu.py runs on a CPU, on nets of no size, and names what it could not measure; no time is looked at."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


def run(patch, *options):
    """Run the script in this process: torch is loaded here already."""
    patch.setattr(sys, "argv", ["gpu.py", *map(str, options)])
    patch.syspath_prepend(FOLDER)
    from common import script

    for name, value in script.KEEP_MEMORY.items():  # without them it would start itself again
        patch.setenv(name, value)
    runpy.run_path(str(FOLDER / "gpu.py"), run_name="__main__")


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """What it writes."""
    out = tmp_path_factory.mktemp("gpu") / "gpu.json"
    with pytest.MonkeyPatch.context() as patch:
        # More than enough, so that on a busy machine no time is used up.
        run(patch, "--device", "cpu", "--quick", "--seconds", 3600, "--threads", 1, "--out", out)
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.fixture
def rows(content, request):
    """The rows of one axis."""
    return [row for row in content["rows"] if row["axis"] == request.param]


def test_the_file_names_the_card_and_every_row_has_an_outcome(content):
    assert [run["card"] for run in content["runs"]] == ["none: this is a CPU"]
    for row in content["rows"]:
        assert "failed" not in row, row
        assert ("not_run" in row) != bool({"time", "distance", "peak_bytes"} & set(row))
    assert {row["axis"] for row in content["rows"]} == {"agreement", "step", "memory", "GradScaler", "streams"}


def test_what_a_cpu_cannot_do_is_named(content):
    reasons = {row["not_run"] for row in content["rows"] if "not_run" in row}
    assert reasons == {
        "TF32 is a precision of CUDA devices",
        "CUDA graphs need a CUDA device",
        "streams need a CUDA device",
    }


@pytest.mark.parametrize("rows", ["step"], indirect=True)
def test_every_rule_is_timed_beside_backpropagation_of_its_own_kind(rows):
    timed = {(row["subject"], row["reference"]) for row in rows if "time" in row}
    kinds = ("", "bf16 ", "compiled ", "compiled bf16 ")
    rules = ("DFA", "FDFA", "FDFA, rows=.125", "FDFA, alternate=2", "FA")
    beside_plain = {(f"{kind}BP", "BP") for kind in kinds if kind}
    assert timed == beside_plain | {(f"{kind}{rule}", f"{kind}BP") for kind in kinds for rule in rules}
    assert all(row["time"]["pairs"] == 2 for row in rows if "time" in row)


@pytest.mark.parametrize("rows", ["agreement"], indirect=True)
def test_in_single_precision_every_rule_is_what_it_is_in_double(rows):
    assert len(rows) == 15
    for row in rows:
        assert row["agrees"], row
        assert row["distance"] < 1e-5, row


@pytest.mark.parametrize("rows", ["memory"], indirect=True)
def test_streaming_takes_no_more_memory_where_nets_are_deeper(rows):
    taken = {(row["net"], row["subject"]): row["activation_bytes"] for row in rows}
    shallow, deep = "2 x 8, batch 64", "6 x 8, batch 64"
    # 4 layers more keep 64 x 8 numbers of 4 bytes each.
    for stored in ("BP", "DFA"):
        assert taken[deep, stored] - taken[shallow, stored] >= 4 * 64 * 8 * 4
    assert taken[deep, "streaming DFA"] - taken[shallow, "streaming DFA"] < 64 * 8 * 4


@pytest.mark.parametrize("rows", ["GradScaler"], indirect=True)
def test_steps_that_overflow_are_skipped(rows):
    assert [row["subject"] for row in rows] == ["DFA", "FDFA", "FA"]
    for row in rows:
        for of in ("", "_reference"):
            # float16 ends below 2^16, and an error of a mean over 4 samples is at least some hundredth.
            assert 5 < row[f"skipped{of}"] < 30
            assert row[f"untouched{of}"]
            assert row[f"finite{of}"]


def test_without_a_gpu_it_says_what_to_do(monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(SystemExit):
        run(monkeypatch)
    assert "--device cpu --quick" in capsys.readouterr().err


def test_the_time_is_divided_by_weight_and_what_is_left_over_goes_on(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from device.budget import Budget

    clock = [0.0]
    budget = Budget(100, {"first": 1, "second": 3}, lambda: clock[0])
    budget.begin_group("first")
    assert budget.begin_cell(5) == 5  # a quarter of 100 seconds for 5 cells
    clock[0] = 5
    budget.end_cell()
    budget.begin_group("second")
    assert budget.begin_cell(5) == 19
    clock[0] = 65
    budget.end_cell()
    assert budget.begin_cell(4) is None  # 35 seconds are left, and the one before took 60
