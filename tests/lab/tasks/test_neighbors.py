"""Steps on parts of a graph. Neighbours are drawn by an extension that most machines miss; the rest is tested there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bpfree.lab.data import load
from bpfree.lab.data.graphs import Graph, GraphSettings
from bpfree.lab.data.sparse import rows
from bpfree.lab.errors import RunError, SettingsError
from bpfree.lab.options.training import CompareOptions
from bpfree.lab.running.runs import run
from bpfree.rules.direct import IGNORED
from support import tiny_graph
from support.interrupted_runs import Interrupting, assert_equal, crash, timeless

pytestmark = pytest.mark.models
typing = pytest.importorskip("torch_geometric.typing", reason="needs torch_geometric: pip install bpfree[graphs]")

from torch_geometric.data import Data  # noqa: E402

from bpfree.lab.tasks.neighbors import Parts  # noqa: E402

WITH_EXTENSION = typing.WITH_PYG_LIB or typing.WITH_TORCH_SPARSE


class ByHand:
    """Draws as torch_geometric's loader does, without an extension: neighbours of neighbours, one node at a time."""

    def __init__(
        self, data: Data, num_neighbors: list[int], input_nodes: Tensor, batch_size: int, **others: Any
    ) -> None:
        assert others == {"shuffle": True, "subgraph_type": "bidirectional"}
        self.neighbors = [data.edge_index[0][data.edge_index[1] == node] for node in range(data.num_nodes)]
        self.numbers, self.nodes, self.size = num_neighbors, input_nodes, batch_size

    def __iter__(self) -> Iterator[Data]:
        for chosen in self.nodes[torch.randperm(len(self.nodes))].split(self.size):
            nodes, last, pairs = chosen.tolist(), chosen.tolist(), set()
            for number in self.numbers:
                drawn = [(other, node) for node in last for other in self._drawn(node, number)]
                pairs |= set(drawn) | {pair[::-1] for pair in drawn}
                last = list(dict.fromkeys(other for other, _ in drawn if other not in nodes))
                nodes += last
            places = {node: place for place, node in enumerate(nodes)}
            edges = torch.tensor([[places[a], places[b]] for a, b in sorted(pairs)]).T
            yield Data(n_id=torch.tensor(nodes), edge_index=edges, batch_size=len(chosen))

    def _drawn(self, node: int, number: int) -> list[int]:
        found = self.neighbors[node]
        return found[torch.randperm(len(found))[:number]].tolist()


@pytest.fixture(params=["by hand", "extension"])
def drawing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "by hand":
        monkeypatch.setattr("torch_geometric.loader.NeighborLoader", ByHand)
    elif not WITH_EXTENSION:
        pytest.skip("needs an extension: pyg-lib or torch-sparse")


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return tiny_graph.graph(tmp_path / "files", settings=GraphSettings(neighbors=[4, 3]))


def test_rows_of_a_sparse_matrix_in_any_order() -> None:
    dense = torch.randn(7, 5) * (torch.rand(7, 5) < 0.4)
    dense[3] = 0
    places = torch.tensor([6, 3, 0, 6])
    assert torch.equal(rows(dense.to_sparse_csr(), places).to_dense(), dense[places])


@pytest.mark.usefixtures("drawing")
def test_a_part_holds_known_nodes_their_features_and_edges_of_the_graph(graph: Graph) -> None:
    train = graph.nodes(0).train
    x, pairs = graph.x.to_dense(), set(map(tuple, graph.edges.T.tolist()))
    seen = []
    for (features, edges), known in Parts(graph, train, 16).steps(4):  # one pass: 60 nodes in parts of 16
        places = [(x == row).all(1).nonzero().flatten().tolist() for row in features.to_dense()]
        learned = (known != IGNORED).nonzero().flatten()
        assert len(learned) <= 16 < len(known) <= 16 * (1 + 4 + 4 * 3)
        for node in learned.tolist():
            assert any(graph.y[place] == known[node] for place in places[node] if place in train.tolist())
        for a, b in edges.T.tolist():
            assert any((one, other) in pairs for one in places[a] for other in places[b])
        seen.append(len(learned))
    assert sum(seen) == len(train)


@pytest.mark.usefixtures("drawing")
def test_a_run_on_parts_learns_and_is_continued_as_if_nothing_had_been(graph: Graph, tmp_path: Path) -> None:
    settings = tiny_graph.settings(batch_size=20, steps=90)
    whole = run(settings, graph, tmp_path / "whole")
    assert whole["accuracy"] > 60  # of three classes
    assert whole["data"]["neighbors"] == [4, 3]
    assert whole["best_validation_step"] in (30, 60, 90)
    with pytest.raises(OSError, match="stopped here"):
        run(settings, graph, tmp_path / "broken", display=Interrupting(2, crash))
    torch.rand(5)
    assert_equal(timeless(run(settings, graph, tmp_path / "broken")), timeless(whole))


def test_without_the_extension_a_message_names_it(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typing, "WITH_PYG_LIB", False)
    monkeypatch.setattr(typing, "WITH_TORCH_SPARSE", False)
    with pytest.raises(SettingsError, match="install pyg-lib or torch-sparse"):
        Parts(graph, graph.nodes(0).train, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "say how many known nodes a step has"),
        ({"batch_size": 16, "epochs": 3}, "counted in --steps"),
        ({"batch_size": 16, "data": "cora-links"}, "of cora-links all edges are learned from"),
        ({"batch_size": 16, "graph": GraphSettings()}, "a step is the whole graph"),
    ],
)
def test_options_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    asked = CompareOptions(data="cora", graph=GraphSettings(neighbors=[4, 3]))
    with pytest.raises(SettingsError, match=message):
        replace(asked, **changes).run("DFA", 0, details=False)


def test_images_have_no_graph() -> None:
    with pytest.raises(SettingsError, match="--graph: digits has no graph"):
        load("digits", graph=GraphSettings(split="stratified"))


@pytest.mark.usefixtures("drawing")
def test_spline_convolutions_need_the_whole_graph(graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="edges in the whole graph"):
        run(tiny_graph.settings(model="SplineNet", batch_size=20), graph, tmp_path)


def test_numbers_of_neighbours_are_checked() -> None:
    with pytest.raises(SettingsError, match="numbers from 1 on"):
        GraphSettings(neighbors=[4, 0])
