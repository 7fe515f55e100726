"""What a table takes, against counting by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import tiny_table

from bpfree.lab import data
from bpfree.lab.errors import SettingsError
from bpfree.lab.tables import cost
from bpfree.lab.tables.options import TableOptions
from bpfree.lab.tables.table import table


@pytest.fixture(autouse=True)
def tiny_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.DATA_SETS, "tiny", lambda folder: tiny.splits())
    monkeypatch.chdir(tmp_path)
    tiny_table.write(tmp_path)


def rows(**changes: object) -> dict[str, dict]:
    found = table(TableOptions(**({"name": "tiny.yaml", "cost": True} | changes)))
    return {row["label"]: row for row in found["rows"]}


# An MLP of 64 - 16 - 16 - 4 on 32 samples; a product of N x n and n x m has 2 N n m operations.
FORWARD = 2 * 32 * (64 * 16 + 16 * 16 + 16 * 4)


def test_operations_are_those_of_the_matrix_products() -> None:
    found = rows()
    # Backpropagation: the gradients of the weights take as many again, those of what goes into the second and the third
    # layer as many as these. DFA has none of those below its taps, but the product of the error, 4 numbers, and B, one
    # for both taps, which have the same width and share it.
    carried = 2 * 32 * (16 * 16 + 16 * 4)
    assert found["BP"]["step_flops"] == 2 * FORWARD + carried
    assert found["DFA"]["step_flops"] == 2 * FORWARD + 2 * 32 * 4 * 16
    evaluations = 3 * 60 * FORWARD / 32
    assert {row["evaluation_flops"] for row in found.values()} == {evaluations}


def test_runs_and_steps_are_those_of_the_scale() -> None:
    found = rows()
    # 240 samples in batches of 32 are 8 steps, three epochs of them; two seeds.
    assert {(row["runs"], row["steps"]) for row in found.values()} == {(2, 24)}
    assert {(row["runs"], row["steps"]) for row in rows(scale="reduced").values()} == {(1, 8)}
    assert {row["runs"] for row in rows(seeds=5).values()} == {5}


def test_hours_on_a_gpu_are_those_of_its_slower_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "GPU_LAUNCH", 0.0)
    monkeypatch.setattr(cost, "GPU_FLOPS", 1e6)
    row = rows()["BP"]
    seconds = 24 * row["step_flops"] / 1e6 + row["evaluation_flops"] / 1e6
    assert row["gpu_hours"] == pytest.approx(2 * seconds / 3600)
    monkeypatch.setattr(cost, "GPU_FLOPS", 1e30)
    monkeypatch.setattr(cost, "GPU_LAUNCH", 1.0)
    row = rows()["BP"]
    assert row["gpu_hours"] == pytest.approx(2 * 24 * row["step_operations"] / 3600)
    # Three linear layers forward, and backward their weights, biases and two inputs: at least as many operations.
    assert row["step_operations"] >= 3 + 3 + 3 + 2


def test_memory_is_at_least_that_of_weights_their_gradients_and_the_optimizer() -> None:
    weights = 4 * (64 * 16 + 16 + 16 * 16 + 16 + 16 * 4 + 4)
    found = rows()
    assert found["BP"]["bytes"] >= 4 * weights  # Adam has two numbers a weight
    assert found["sum"]["bytes"] >= 2 * weights + 4 * 4 * 16  # SGD, and feedback


def test_a_step_is_measured_with_few_samples_and_known_for_many() -> None:
    line = cost.Linear.through((8, 26.0), (16, 42.0))
    assert (line.fixed, line.each, line.at(128)) == (10.0, 2.0, 266.0)
    assert cost.Linear.through((1, 3.0), (1, 3.0)).at(10) == 30.0  # one point: proportional


def test_large_images_are_measured_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = rows()["BP"]
    monkeypatch.setattr(cost, "_MEASURED_NUMBERS", 8 * 64)
    few = rows()["BP"]
    assert (usual["measured_samples"], few["measured_samples"]) == (32, 8)  # 2 and 8 samples were measured
    assert few["step_flops"] == usual["step_flops"]
    assert few["evaluation_flops"] == usual["evaluation_flops"]


def test_costs_of_several_scales_are_kept_and_stand_on_the_page() -> None:
    rows()
    rows(scale="reduced")
    written = json.loads(Path("results/tiny-cost.json").read_text())
    assert list(written["scales"]) == ["full", "reduced"]
    page = Path("results/RESULTS.md").read_text()
    assert "| tiny | full | 6 |" in page
    assert "| tiny | reduced (1 of 3 epochs) | 3 |" in page
    assert "10 TFLOP/s" in page
    assert not Path("results/tiny.json").exists(), "nothing was run"


def test_a_table_that_trains_nothing_needs_no_gpu(tmp_path: Path) -> None:
    text = "title: T\nbase: {function: tiny_table.memory}\nrows: {a: {arguments: {width: 2}}}\n"
    tiny_table.write(tmp_path, text + "columns: {bytes: {metric: bytes}}\n", "computed")
    with pytest.raises(SettingsError, match="trains nothing"):
        rows(name="computed.yaml")
