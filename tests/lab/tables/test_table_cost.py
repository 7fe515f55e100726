"""What a table takes, against counting by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bpfree.lab import data
from bpfree.lab.errors import DamageError, SettingsError, WriteError
from bpfree.lab.tables import cost, flops, measured_step, terminal_view
from bpfree.lab.tables.command_options import TableOptions
from bpfree.lab.tables.table import table
from support import tiny_graph, tiny_lab, tiny_table, tiny_text


@pytest.fixture(autouse=True)
def tiny_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.DATA_SETS, "tiny", lambda folder: tiny_lab.splits())
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


def test_batch_normalization_is_measured_with_two_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    normalized = tiny_table.RECIPE.replace("dropout: 0.2", "dropout: 0.2, batch_norm: true")
    tiny_table.write(tmp_path, normalized, "normalized")
    assert rows(name="normalized.yaml")["BP"]["measured_samples"] == 32
    monkeypatch.setattr(measured_step, "_MEASURED_FLOPS", 1.0)
    found = rows(name="normalized.yaml")["BP"]
    assert found["measured_samples"] == 2
    carried = 2 * 32 * (16 * 16 + 16 * 4)
    assert found["step_flops"] == pytest.approx(2 * FORWARD + carried)


GRAPH = """
title: A graph
base: {data: cora, model: GCN, rule: BP, steps: 4, evaluations: 1, alignment: never}
rows: {BP: {}}
columns: {accuracy: {}}
"""


@pytest.fixture
def graph(tmp_path: Path) -> dict[str, Any]:
    tiny_table.write(tmp_path, GRAPH, "graph")
    return tiny_graph.write(tmp_path / "files")


def test_a_product_with_a_sparse_matrix_has_the_operations_of_what_is_stored(graph: dict[str, Any]) -> None:
    row = rows(name="graph.yaml", data_dir="files")["BP"]
    # A GCN from bags of words to 16 numbers and to 3 classes; each node is its own neighbour too.
    n, words = len(graph["x"]), int((graph["x"] != 0).sum())
    edges = len(graph["pairs"]) + n
    forward = 2 * (words * 16 + edges * 16 + n * 16 * 3 + edges * 3)
    # Backpropagation: as many for the weights and the aggregation, and the gradient of the hidden layer.
    assert row["step_flops"] == 2 * forward + 2 * n * 16 * 3
    assert row["evaluation_flops"] == 4 * forward  # a graph is evaluated in every step


def test_what_an_evaluation_in_every_step_starts_is_in_the_hours_on_a_gpu(graph: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(cost.GPU_FLOPS, "float32", 1e30)
    monkeypatch.setattr(cost, "GPU_LAUNCH", 1.0)
    row = rows(name="graph.yaml", data_dir="files")["BP"]
    of_steps = row["steps"] * row["step_operations"]
    # Of each of four evaluations at least the four products; and no more than of a step.
    assert of_steps + 4 * 4 <= row["gpu_hours"] * 3600 <= 2 * of_steps


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_coo])
def test_sparse_products_of_every_kind_are_counted(layout: torch.layout) -> None:
    # Three numbers are stored; what they are multiplied by has 4 columns or rows.
    matrix = torch.eye(3).to_sparse(layout=layout)
    calls = [lambda: matrix @ torch.ones(3, 4), lambda: torch.addmm(torch.ones(3, 4), matrix, torch.ones(3, 4))]
    for call in calls:
        with flops.counter() as counted:
            call()
        assert counted.get_total_flops() == 2 * 3 * 4
    with flops.counter() as counted:
        torch.sparse.sampled_addmm(torch.eye(3).to_sparse_csr(), torch.ones(3, 4), torch.ones(4, 3))
        torch.ones(2, 3) @ torch.ones(3, 4)
    assert counted.get_total_flops() == 2 * 3 * 4 + 2 * 2 * 3 * 4


def test_runs_and_steps_are_those_of_the_scale() -> None:
    found = rows()
    # 240 samples in batches of 32 are 8 steps, three epochs of them; two seeds.
    assert {(row["runs"], row["steps"]) for row in found.values()} == {(2, 24)}
    assert {(row["runs"], row["steps"]) for row in rows(scale="reduced").values()} == {(1, 8)}
    assert {row["runs"] for row in rows(seeds=5).values()} == {5}


def test_hours_on_a_gpu_are_those_of_its_slower_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "GPU_LAUNCH", 0.0)
    monkeypatch.setitem(cost.GPU_FLOPS, "float32", 1e6)
    row = rows()["BP"]
    seconds = 24 * row["step_flops"] / 1e6 + row["evaluation_flops"] / 1e6
    assert row["gpu_hours"] == pytest.approx(2 * seconds / 3600)
    monkeypatch.setitem(cost.GPU_FLOPS, "float32", 1e30)
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
    line = measured_step.Linear.through((8, 26.0), (16, 42.0))
    assert (line.fixed, line.each, line.at(128)) == (10.0, 2.0, 266.0)
    assert measured_step.Linear.through((1, 3.0), (1, 3.0)).at(10) == 30.0  # one point: proportional


def test_large_images_are_measured_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = rows()["BP"]
    monkeypatch.setattr(measured_step, "_MEASURED_NUMBERS", 8 * 64)
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


@pytest.mark.parametrize("part", [{"cell": ["BP"]}, {"cell": ["BP/accuracy"]}, {"seeds": 5}])
def test_what_a_part_of_a_table_takes_is_written_nowhere(part: dict[str, object]) -> None:
    rows(**part)
    assert not Path("results").exists()
    rows()
    kept = Path("results/tiny-cost.json").read_text()
    rows(**part)
    assert Path("results/tiny-cost.json").read_text() == kept
    Path("results/tiny-cost.json").unlink()
    rows(seeds=2)  # as many as the scale has
    assert Path("results/tiny-cost.json").exists()


@pytest.mark.parametrize("content", ["{", "[1]", '{"format": "mine"}', '{"scales": {}}'])
def test_a_damaged_file_of_costs_is_left_as_it_is(content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("results").mkdir()
    path = Path("results/tiny-cost.json")
    path.write_text(content)
    monkeypatch.setattr(cost, "row_cost", lambda *_: pytest.fail("it was measured"))
    said = r"not readable as JSON|has no checksum|no cost of bpfree's, and that of tiny"
    with pytest.raises((DamageError, WriteError), match=rf"tiny-cost\.json is.*({said})|tiny-cost\.json {said}"):
        rows()
    assert path.read_text() == content


def test_a_table_that_trains_nothing_needs_no_gpu(tmp_path: Path) -> None:
    text = "title: T\nbase: {function: support.tiny_table.memory}\nrows: {a: {arguments: {width: 2}}}\n"
    tiny_table.write(tmp_path, text + "columns: {bytes: {metric: bytes}}\n", "computed")
    with pytest.raises(SettingsError, match="trains nothing"):
        rows(name="computed.yaml")


# -- language models ---------------------------------------------------------------------------------------------------

TEXT = """
title: A text
base:
  data: text
  text: {vocabulary: 280, context: 16}
  model: {class_path: CausalTransformer, init_args: {blocks: 1, width: 16, heads: 2, hidden: 32, dropout: 0.0}}
  rule: BP
  batch_size: 8
  steps: 40
  evaluations: 2
  alignment: never
rows:
  whole: {}
  direct: {rule: DFA, model: {init_args: {blocks: 2}}}
  cut: {accumulate: 4}
  aligned: {accumulate: 4, alignment: last}
  rounded: {precision: bf16}
columns: {perplexity: {}}
"""
TOKENS = 8 * 16
# Of a token: queries, keys, values and their mixture, two layers of the block, and the head; and in attention the
# products of a query with all keys, and of all weights with the values.
LAYERS = 2 * (4 * 16 * 16 + 2 * 16 * 32 + 16 * 280)
ATTENTION = 2 * 2 * 16 * 16


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text.folder(tmp_path_factory.mktemp("files"))


def costs(folder: Path, files: Path, *cells: str) -> dict[str, dict]:
    tiny_table.write(folder, TEXT, "text")
    return rows(name="text.yaml", data_dir=str(files), cell=list(cells))


def test_a_language_models_operations_are_those_of_its_tokens(tmp_path: Path, files: Path) -> None:
    row = costs(tmp_path, files, "whole")["whole"]
    # Backward twice as many for layers; for attention five products in place of two, one of which is made again.
    assert row["step_flops"] == TOKENS * (3 * LAYERS + 3.5 * ATTENTION)
    assert row["steps"] == 40
    assert row["measured_samples"] == 8
    sequences = row["evaluation_flops"] / (16 * (LAYERS + ATTENTION))
    assert sequences == 2 * len(tiny_text.text(files).evaluation)


def test_micro_batches_take_the_same_operations_and_less_memory(tmp_path: Path, files: Path) -> None:
    found = costs(tmp_path, files, "whole", "cut", "aligned")
    whole, cut = found["whole"], found["cut"]
    assert cut["step_flops"] == whole["step_flops"]
    assert cut["bytes"] < whole["bytes"]
    assert 3 * whole["step_operations"] < cut["step_operations"] < 5 * whole["step_operations"]
    assert cut["steps"] == whole["steps"]
    # The sixteen sequences that alignment is measured on are not cut into parts of two.
    assert found["aligned"]["bytes"] > 1.5 * cut["bytes"]


def test_a_gpu_is_faster_in_bfloat16(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "GPU_LAUNCH", 0.0)
    tiny_table.write(tmp_path, TEXT, "text")
    found = table(TableOptions(name="text.yaml", cost=True, data_dir=str(files), cell=["whole", "rounded"]))
    whole, rounded = found["rows"]
    assert rounded["step_flops"] == whole["step_flops"]
    assert rounded["gpu_hours"] == pytest.approx(whole["gpu_hours"] / 10)
    assert found["assumed"] == {"flops": cost.GPU_FLOPS, "launch": 0.0}
    assert "10 TFLOP/s and 100 TFLOP/s in bf16 in the matrix" in terminal_view.assumption(found)


def test_large_models_are_measured_with_few_samples(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = 2.5 * 16 * (3 * LAYERS + 3.5 * ATTENTION)
    monkeypatch.setattr(measured_step, "_MEASURED_FLOPS", largest)
    found = costs(tmp_path, files, "whole", "direct", "cut")
    # What an attachment verifies in its first pass does not count.
    direct = found.pop("direct")
    assert direct["measured_samples"] == largest // (direct["step_flops"] / 8)
    # One in each of four micro-batches, at least.
    assert {label: row["measured_samples"] for label, row in found.items()} == {"whole": 2, "cut": 4}
    monkeypatch.setattr(measured_step, "_MEASURED_FLOPS", 1e12)
    for label, row in costs(tmp_path, files, "whole", "cut").items():
        assert found[label]["step_flops"] == pytest.approx(row["step_flops"])
        assert found[label]["step_operations"] == row["step_operations"]
        assert found[label]["bytes"] == pytest.approx(row["bytes"], rel=0.03)
