"""Graphs: Planetoid's files, their splits, and what is said of files that are not what they should be."""

from __future__ import annotations

import collections
import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from bpfree.lab.data import GraphSettings, ImageSettings, load
from bpfree.lab.data import download as downloading
from bpfree.lab.data.graphs import LinkedGraph, unlinked
from bpfree.lab.data.pickled import NUMBERS, unpickled
from bpfree.lab.data.planetoid import CITESEER, CORA, PUBLISHER, PUBMED, Citations, load_planetoid
from bpfree.lab.errors import DataError, SettingsError
from support import tiny_graph
from support.fake_network import Answers
from support.sheets import DATA

REAL = DATA / "Planetoid"


def pairs(edges: torch.Tensor) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in edges.T]


@pytest.mark.parametrize("gap", [0, 4])
def test_a_graph_is_what_its_files_say(tmp_path: Path, gap: int) -> None:
    made = tiny_graph.write(tmp_path / "Cora" / "raw", gap=gap)
    raw = load("cora", tmp_path, graph=GraphSettings(normalize=False))
    assert np.array_equal(raw.x.to_dense().numpy(), made["x"])
    assert raw.y.tolist() == made["y"].tolist()
    assert pairs(raw.edges) == sorted({*made["pairs"], *((b, a) for a, b in made["pairs"])})
    assert raw.public.train.tolist() == list(range(made["train"]))
    assert raw.public.validation.tolist() == list(range(made["train"], made["train"] + 500))
    assert raw.public.test.tolist() == made["test"]
    assert len(made["test"]) == 90 - gap
    usual = load("cora", tmp_path)
    sums = made["x"].sum(1, keepdims=True).clip(1)
    assert np.allclose(usual.x.to_dense().numpy(), made["x"] / sums)
    told = usual.describe()
    assert (told["nodes"], told["edges"], told["n_train"], told["classes"]) == (660, len(pairs(raw.edges)) // 2, 60, 3)
    assert told["origin"].endswith("not as published")
    content = (tmp_path / "Cora" / "raw" / "ind.cora.x").read_bytes()
    assert told["checksums"]["ind.cora.x"] == hashlib.sha256(content).hexdigest()


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/Planetoid")
@pytest.mark.parametrize("citations", [CORA, CITESEER], ids=["Cora", "CiteSeer"])
def test_the_published_graphs_are_torch_geometrics(citations: Citations) -> None:
    planetoid = pytest.importorskip("torch_geometric.io.planetoid")
    theirs = planetoid.read_planetoid_data(str(REAL / citations.title / "raw"), citations.title)
    ours = load(citations.title.lower(), REAL, graph=GraphSettings(normalize=False))
    assert torch.equal(ours.x.to_dense(), theirs.x)
    assert torch.equal(ours.y, theirs.y)
    assert pairs(ours.edges) == sorted(pairs(theirs.edge_index))
    for part, mask in zip(ours.public, (theirs.train_mask, theirs.val_mask, theirs.test_mask), strict=True):
        assert sorted(part.tolist()) == mask.nonzero().flatten().tolist()
    assert ours.describe()["origin"] == "the published files, byte for byte"


def test_a_graph_of_pubmeds_shape(tmp_path: Path) -> None:
    shape = {"n": 19_717, "test": 1000, "classes": 3, "features": 500, "words": 50, "edges": 44_338}
    made = tiny_graph.write(tmp_path / "PubMed" / "raw", PUBMED, **shape)
    found = load("pubmed", tmp_path)
    assert found.shape == (500,)
    assert (len(found.y), found.classes, len(found.public.train), len(found.public.test)) == (19_717, 3, 60, 1000)
    assert found.y.tolist() == made["y"].tolist()
    assert found.edges.shape[1] == len({*made["pairs"], *((b, a) for a, b in made["pairs"])})
    assert torch.allclose(found.x.to_dense().sum(1), torch.ones(19_717))


@pytest.mark.skipif(not (REAL / "PubMed").is_dir(), reason="needs ../shared/data/Planetoid")
def test_pubmeds_missing_file_is_named_with_its_place() -> None:
    if (REAL / "PubMed" / "raw" / "ind.pubmed.allx").is_file():
        pytest.skip("the file is there")
    with pytest.raises(DataError, match=rf"ind\.pubmed\.allx is missing .*{PUBLISHER}ind\.pubmed\.allx"):
        load("pubmed", REAL)


def test_folders_in_which_files_are_looked_for(tmp_path: Path) -> None:
    for place in ("a", "b/raw", "c/Cora/raw", "d/Cora", "e/Planetoid/Cora/raw"):
        tiny_graph.write(tmp_path / place)
        assert len(load("cora", tmp_path / place.split("/")[0]).y) == 660
    with pytest.raises(DataError, match=r"no file of CiteSeer in .*ind\.citeseer\.allx.*or leave out --data-dir"):
        load("citeseer", tmp_path / "a")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo it ran > ran.txt",)


@pytest.mark.parametrize("part", ["allx", "graph", "y"])
def test_a_file_that_would_run_something_is_refused(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_graph.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"ind.cora.{part}").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError, match=rf"ind\.cora\.{part}: it asks for (posix|nt)\.system"):
        load("cora", tmp_path)
    assert not Path("ran.txt").exists()


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("x", np.zeros((60, 30)), "holds a ndarray that is no sparse matrix of finite"),
        ("ally", [1, 2], "holds a list that is no array of rows"),
        ("ty", np.array([["a"]]), "array of type U1 in place of numbers"),
        ("graph", {0: [1]}, "graph and test.index have not the same nodes"),
        ("graph", {node: [660] for node in range(660)}, "names nodes that are not in the graph"),
        ("ally", np.zeros((3, 3), np.int32), "allx and ally have not the same nodes"),
        ("tx", sp.csr_matrix(np.zeros((3, 30), np.float32)), "tx, ty and test.index have not the same nodes"),
        ("tx", sp.csr_matrix(np.zeros((90, 50), np.float32)), "allx and tx have not the same words"),
        ("ty", np.zeros((90, 4), np.int32), "ally and ty have not the same classes"),
        ("ty", np.zeros((90, 0), np.int32), "that is no array of rows"),
        ("tx", sp.csr_matrix(np.full((90, 30), np.nan, np.float32)), "that is no sparse matrix of finite"),
        ("graph", {node: [] for node in range(660)}, "that is no dictionary of lists of node numbers"),
        ("graph", {node: [1.7] for node in range(660)}, "that is no dictionary of lists of node numbers"),
        ("graph", dict.fromkeys(range(660), 3), "that is no dictionary of lists of node numbers"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path: Path, part: str, value: Any, message: str) -> None:
    tiny_graph.write(tmp_path)
    (tmp_path / f"ind.cora.{part}").write_bytes(pickle.dumps(value))
    with pytest.raises(DataError, match=message):
        load("cora", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1\ntwo\n", "no list of node numbers"),
        ("", "test.index is empty"),
        ("5\n6\n", "test.index have not the same nodes"),
    ],
)
def test_test_indices_that_mean_nothing(tmp_path: Path, content: str, message: str) -> None:
    tiny_graph.write(tmp_path)
    (tmp_path / "ind.cora.test.index").write_text(content)
    with pytest.raises(DataError, match=message):
        load("cora", tmp_path)
    (tmp_path / "ind.cora.allx").write_bytes(b"\x80\x02garbage")
    with pytest.raises(DataError, match="truncated or altered"):
        load("cora", tmp_path)


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_a_sparse_matrix_comes_as_it_was(protocol: int) -> None:
    dense = np.array([[0, 2.5, 0], [0, 0, 0], [1, 0, 3]], np.float64)
    found = unpickled(pickle.dumps(sp.csr_matrix(dense), protocol=protocol), "it", NUMBERS)
    again = sp.csr_matrix((found.data, found.indices, found.indptr), found.shape)
    assert np.array_equal(again.toarray(), dense)


@pytest.mark.parametrize(
    ("name", "value"), [("indices", [1, 7]), ("indices", [1]), ("indptr", [0, 2, 1, 2]), ("indptr", [0, 1, 2])]
)
def test_a_sparse_matrix_that_points_outside_itself_is_refused(name: str, value: list[int]) -> None:
    matrix = sp.csr_matrix(np.array([[0, 1.0, 0], [0, 0, 0], [0, 0, 1.0]]))
    setattr(matrix, name, np.array(value, np.int32))
    with pytest.raises(DataError, match="points at entries that it has not"):
        unpickled(pickle.dumps(matrix), "it", NUMBERS)


def test_arrays_of_another_byte_order_are_turned() -> None:
    found = unpickled(pickle.dumps(np.array([1, 258, -3], ">i4")), "it", NUMBERS)
    assert found.tolist() == [1, 258, -3]


def test_a_file_cannot_change_how_others_are_read() -> None:
    # A defaultdict with a state: pickle would put it into the class that stands for all of them.
    altering = b"\x80\x02ccollections\ndefaultdict\nN}X\x08\0\0\0__init__Ns\x86b."
    with pytest.raises(DataError, match="gives a dictionary attributes"):
        unpickled(altering, "it", NUMBERS)
    graph = collections.defaultdict(list, {0: [1], 1: [0]})
    assert unpickled(pickle.dumps(graph), "it", NUMBERS) == {0: [1], 1: [0]}


# -- downloads ---------------------------------------------------------------------------------------------------------


def test_files_are_downloaded_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_graph.write(tmp_path / "made")
    contents = {PUBLISHER + path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    network = Answers(contents)
    monkeypatch.setattr(downloading.urllib.request, "urlopen", network)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"ind\.cora\.x could not be downloaded"):
        load("cora")  # these are not the published files
    sums = {part: hashlib.sha256(contents[PUBLISHER + CORA.file(part)]).hexdigest() for part in CORA.checksums}
    allx = contents[PUBLISHER + "ind.cora.allx"]
    # As git names a file's content.
    sums["allx"] = hashlib.sha1(f"blob {len(allx)}\0".encode() + allx).hexdigest()
    asked = len(network.asked)
    made = Citations("Cora", sums)
    assert load_planetoid(made, "cora", None).describe()["origin"] == "the published files, byte for byte"
    assert len(network.asked) == asked + 8
    load_planetoid(made, "cora", None)
    assert len(network.asked) == asked + 8


# -- splits ------------------------------------------------------------------------------------------------------------


def test_stratified_folds_depend_on_the_seed_alone(tmp_path: Path) -> None:
    graph = tiny_graph.graph(tmp_path, settings=GraphSettings(split="stratified"))
    for seed in (0, 1):
        nodes = graph.nodes(seed)
        assert sorted(torch.cat(nodes).tolist()) == list(range(660))
        assert [len(part) for part in nodes] == [132, 132, 396]
        for part in nodes:  # a third of each class, give or take one a fold
            assert max(abs(len(part) / 3 - n) for n in graph.y[part].bincount().tolist()) <= 3
        assert all(torch.equal(one, other) for one, other in zip(nodes, graph.nodes(seed), strict=True))
    assert not torch.equal(graph.nodes(0).train, graph.nodes(1).train)
    public = tiny_graph.graph(tmp_path)
    assert public.nodes(0) is public.nodes(1)


def test_edges_are_divided_without_overlap(tmp_path: Path) -> None:
    graph = tiny_graph.graph(tmp_path, "cora-links")
    assert isinstance(graph, LinkedGraph)
    links, there = graph.links(3), set(pairs(graph.edges))
    m = len(there) // 2
    held = [*pairs(links.validation), *pairs(links.test)]
    assert (links.validation.shape[1], links.test.shape[1]) == (int(0.05 * m), int(0.1 * m))
    both_ways = {*pairs(links.train), *held, *((b, a) for a, b in held)}
    assert both_ways == there
    assert links.train.shape[1] + 2 * len(held) == 2 * m  # none in two parts
    others = [*pairs(links.validation_others), *pairs(links.test_others)]
    assert len(others) == len(held) == len(set(others))
    assert all(a < b and (a, b) not in there for a, b in others)
    assert torch.equal(graph.links(3).test, links.test)
    assert not torch.equal(graph.links(4).test, links.test)
    assert graph.describe()["n_eval"] == links.test.shape[1]


def test_pairs_without_an_edge_are_drawn_evenly() -> None:
    # A ring of five: each node has two others that are no neighbours, ten ordered pairs in all.
    start = torch.arange(5)
    ring = torch.stack([start, (start + 1) % 5])
    edges = torch.cat([ring, ring.flip(0)], dim=1)
    torch.manual_seed(0)
    found = pairs(unlinked(edges, 5, 10_000))
    counts = {pair: found.count(pair) for pair in set(found)}
    assert len(counts) == 10
    assert all(abs(a - b) % 5 in (2, 3) for a, b in counts)
    assert max(abs(count - 1000) for count in counts.values()) < 5 * 30  # a standard deviation is 30
    once = pairs(unlinked(edges, 5, 5, once=True))
    assert sorted(once) == [(0, 2), (0, 3), (1, 3), (1, 4), (2, 4)]


def test_options_that_mean_nothing_for_graphs(tmp_path: Path) -> None:
    tiny_graph.write(tmp_path)
    with pytest.raises(SettingsError, match=r"--validation 100: a graph has nodes"):
        load("cora", tmp_path, validation=100)
    with pytest.raises(SettingsError, match="--images: cora has no images"):
        load("cora", tmp_path, images=ImageSettings(size=8))
