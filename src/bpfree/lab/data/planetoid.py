"""Cora, CiteSeer and PubMed from the files of Planetoid (Yang, Cohen and Salakhutdinov 2016).

Citation graphs: a node is a paper, its features are the words in it, an edge is a citation, its class is the field.
The files are pickles of numpy and scipy; they are read without running anything that they name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bpfree.lab.data.download import cache_folder, download, has_checksum
from bpfree.lab.data.graphs import Graph, GraphSettings, LinkedGraph, Nodes
from bpfree.lab.data.pickled import NUMBERS, Csr, unpickled
from bpfree.lab.data.samples import PUBLISHED
from bpfree.lab.data.sparse import compressed_rows
from bpfree.lab.errors import DataError

PUBLISHER = "https://github.com/kimiyoung/planetoid/raw/master/data/"
_VALIDATION = 500  # nodes, behind those for training
_KINDS: dict[str, Callable[[Any], bool]] = {
    "sparse matrix of finite numbers": lambda value: isinstance(value, Csr) and bool(np.isfinite(value.data).all()),
    "array of rows": lambda value: isinstance(value, np.ndarray) and value.ndim == 2 and value.shape[1] > 0,
    "dictionary of lists of node numbers": lambda value: isinstance(value, dict) and _neighbours(value),
}
_PARTS = {
    **dict.fromkeys(("x", "tx", "allx"), "sparse matrix of finite numbers"),
    **dict.fromkeys(("y", "ty", "ally"), "array of rows"),
    "graph": "dictionary of lists of node numbers",
}
_TEST = "test.index"


@dataclass(frozen=True)
class Citations:
    """One of the three graphs.

    Attributes:
        title: Its name, and that of its folder.
        checksums: For each part the SHA-256 of the published file, or its git identifier (40 digits).
    """

    title: str
    checksums: Mapping[str, str]

    def file(self, part: str) -> str:
        """Return the name of a part's file."""
        return f"ind.{self.title.lower()}.{part}"


CORA = Citations(
    "Cora",
    {
        "x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
        "tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
        "allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
        "y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
        "ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
        "ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
        "graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
        _TEST: "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
    },
)
CITESEER = Citations(
    "CiteSeer",
    {
        "x": "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6",
        "tx": "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
        "allx": "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
        "y": "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
        "ty": "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
        "ally": "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
        "graph": "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
        _TEST: "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
    },
)
PUBMED = Citations(
    "PubMed",
    {
        "x": "fbe9cb5c47200d1b7769a26e579be3b7130b556831f9d850e77c4c74f2599b33",
        "tx": "4eb5f5d0f30f26497eb0ac6ac9719d09c67e284f1ed0385c93f3ef27a671da3d",
        # git's: nobody here has seen the file itself.
        "allx": "3b86bccf08111c37c632a9dd8ab63db25ea76361",
        "y": "e6c807633307a07ed659249006536a147c7999c797f11a2560752990181b41b3",
        "ty": "ee2e0d4819d9fbcc403689c3bf2e49face401b605932f093bc58ab6461130fdd",
        "ally": "0c37bbe3b5014ec365e9d393cf4791925e5ed94fb194305d74f064a8d7b50f0e",
        "graph": "5b89f0036ca22909471f1e6558eb42fa06e0c730a577bde5b058b40638f81dc9",
        _TEST: "b101d421688bbaecbd82e8a18f1e282378d6830f3a37666f28ebc47f844341b5",
    },
)


def load_planetoid(
    citations: Citations, name: str, data_dir: Path | None, settings: GraphSettings | None = None
) -> Graph:
    """Read a graph; edges are made undirected, and doubles and loops are left out, as torch_geometric does.

    Args:
        citations: Which one.
        name: The data set's name; that of a graph whose edges are predicted ends in ``-links``.
        data_dir: A folder with its eight files, or one with ``raw``, ``NAME/raw`` or ``Planetoid/NAME/raw``. None reads
            the cache folder, after a download (1 MB, PubMed 6 MB) if needed.
        settings: The options for reading it.

    Raises:
        DataError: A file is missing, truncated, no pickle of numbers, or does not fit the others; or cannot be had.
    """
    settings = settings or GraphSettings()
    folder = _downloaded(citations) if data_dir is None else _users_folder(citations, data_dir)
    contents = {part: _content(folder / citations.file(part), citations) for part in (*_PARTS, _TEST)}
    parts = {part: _part(folder / citations.file(part), contents[part], kind) for part, kind in _PARTS.items()}
    test = _indices(folder / citations.file(_TEST), contents[_TEST])
    kind = LinkedGraph if name.endswith("-links") else Graph
    _check(citations, parts, test, public=kind is Graph and settings.split == "public")
    x, y = _in_order(parts, test)
    train, known = len(parts["y"]), parts["allx"].shape[0]
    others = [part for part, content in contents.items() if not has_checksum(content, citations.checksums[part])]
    return kind(
        name=name,
        x=_sparse(_normalized(x) if settings.normalize else x),
        y=y,
        edges=_edges(parts["graph"], len(y), citations),
        public=Nodes(torch.arange(train), torch.arange(train, min(train + _VALIDATION, known)), test),
        settings=settings,
        checksums={citations.file(part): hashlib.sha256(content).hexdigest() for part, content in contents.items()},
        origin=f"{', '.join(others)} not as published" if others else PUBLISHED,
    )


def _downloaded(citations: Citations) -> Path:
    folder = cache_folder() / "planetoid" / citations.title
    for part, checksum in citations.checksums.items():
        path = folder / citations.file(part)
        download(path, [PUBLISHER + path.name], checksum)
    return folder


def _users_folder(citations: Citations, data_dir: Path) -> Path:
    own = data_dir / citations.title
    places = (data_dir, data_dir / "raw", own / "raw", own, data_dir / "Planetoid" / citations.title / "raw")
    for folder in places:
        if any((folder / citations.file(part)).is_file() for part in citations.checksums):
            return folder
    raise DataError(
        f"no file of {citations.title} in {data_dir}, its raw or its {citations.title}/raw. Put there "
        f"{', '.join(map(citations.file, citations.checksums))} from {PUBLISHER}, or leave out --data-dir to download "
        "them."
    )


def _content(path: Path, citations: Citations) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"{path.name} is missing in {path.parent}: {citations.title} cannot be read without it. It is at "
            f"{PUBLISHER}{path.name}; put it beside the other files, or leave out --data-dir to download all of them."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error


def _part(path: Path, content: bytes, kind: str) -> Any:
    value = unpickled(content, str(path), NUMBERS)
    if not _KINDS[kind](value):
        raise DataError(f"{path} holds a {type(value).__name__} that is no {kind}. Fetch the original file again.")
    return value


def _neighbours(graph: dict[Any, Any]) -> bool:
    """Return whether this holds a list of neighbours for every node, and at least one list is not empty."""
    lists = list(graph.values())
    if len({id(found) for found in lists}) < len(lists):  # more edges than the file has bytes
        return False
    whole = all(isinstance(found, list) and all(map(_is_node, found)) for found in lists)
    return whole and any(lists) and all(map(_is_node, graph))


def _is_node(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _indices(path: Path, content: bytes) -> Tensor:
    try:
        found = torch.tensor([int(line) for line in content.split()], dtype=torch.int64)
    except (ValueError, OverflowError, RuntimeError) as error:  # the last two of numbers that are too large
        raise DataError(f"{path} is no list of node numbers ({error}). Fetch the original file again.") from error
    if not len(found):
        raise DataError(f"{path} is empty. Fetch the original file again.")
    return found


def _check(citations: Citations, parts: Mapping[str, Any], test: Tensor, *, public: bool) -> None:
    """Find out whether the parts are those of one graph."""
    known, nodes = parts["allx"].shape[0], int(test.max()) + 1
    if public and known < len(parts["y"]) + _VALIDATION:
        raise DataError(
            f"{citations.file('allx')} has {known} nodes, too few for the published split, which validates on "
            f"{_VALIDATION} behind the {len(parts['y'])} of {citations.file('y')}: --graph.split stratified needs none."
        )
    for wrong, found in (
        ("allx and ally have not the same nodes", known != len(parts["ally"])),
        ("tx, ty and test.index have not the same nodes", not parts["tx"].shape[0] == len(parts["ty"]) == len(test)),
        ("allx and tx have not the same words", parts["allx"].shape[1] != parts["tx"].shape[1]),
        ("ally and ty have not the same classes", parts["ally"].shape[1:] != parts["ty"].shape[1:]),
        ("test.index names nodes of allx, or one twice", int(test.min()) < known or len(test.unique()) < len(test)),
        ("graph and test.index have not the same nodes", nodes != len(parts["graph"])),
    ):
        if found:
            raise DataError(
                f"the files of {citations.title} do not belong together: {wrong}. Fetch the original files again."
            )


def _in_order(parts: Mapping[str, Any], test: Tensor) -> tuple[Csr, Tensor]:
    """Return features and classes of all nodes; in the files, test nodes are in the order of their indices.

    Nodes that are in no file (CiteSeer has 15, without any word or neighbour) have no features, and class 0.
    """
    known, given = parts["allx"], parts["tx"]
    n, places = int(test.max()) + 1, test.numpy()
    lengths = np.zeros(n, np.int64)
    lengths[: known.shape[0]] = np.diff(known.indptr)
    lengths[places] = np.diff(given.indptr)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    indices, data = np.empty(indptr[-1], np.int64), np.empty(indptr[-1], np.float32)
    end = int(known.indptr[-1])
    indices[:end], data[:end] = known.indices, known.data
    for row, place in enumerate(places):
        here, there = slice(indptr[place], indptr[place + 1]), slice(given.indptr[row], given.indptr[row + 1])
        indices[here], data[here] = given.indices[there], given.data[there]
    x = Csr()
    x.shape, x.indptr, x.indices, x.data = (n, known.shape[1]), indptr, indices, data
    y = torch.zeros(n, dtype=torch.int64)
    y[: known.shape[0]] = torch.from_numpy(parts["ally"].argmax(1))
    y[test] = torch.from_numpy(parts["ty"].argmax(1))
    return x, y


def _normalized(x: Csr) -> Csr:
    """Return the same, each row divided by its sum where that is more than 1, as torch_geometric does."""
    lengths = np.diff(x.indptr)
    sums = np.bincount(np.repeat(np.arange(len(lengths)), lengths), weights=x.data, minlength=len(lengths))
    x.data = (x.data / np.repeat(np.maximum(sums, 1), lengths)).astype(np.float32)
    return x


def _sparse(x: Csr) -> Tensor:
    starts, columns, values = (torch.from_numpy(part) for part in (x.indptr, x.indices, x.data))
    return compressed_rows(starts, columns, values, x.shape)


def _edges(neighbours: Mapping[int, list[int]], n: int, citations: Citations) -> Tensor:
    pairs = [(node, other) for node, found in neighbours.items() for other in found]
    edges = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    if not (int(edges.min()) >= 0 and int(edges.max()) < n):
        raise DataError(
            f"{citations.file('graph')} names nodes that are not in the graph. Fetch the original file again."
        )
    edges = edges[:, edges[0] != edges[1]]
    return torch.cat([edges, edges.flip(0)], dim=1).unique(dim=1)


PLANETOID = {
    f"{citations.title.lower()}{kind}": partial(load_planetoid, citations, f"{citations.title.lower()}{kind}")
    for kind in ("", "-links")
    for citations in (CORA, CITESEER, PUBMED)
}
"""Name -> reader of the folder and the settings."""
