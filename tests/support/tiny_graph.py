"""Made-up citation graphs in Planetoid's files: nodes of a class share words and cite one another."""

from __future__ import annotations

import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from bpfree.lab.data.graphs import Graph, GraphSettings
from bpfree.lab.data.planetoid import CORA, Citations, load_planetoid
from bpfree.lab.settings import RunSettings, rule_settings
from bpfree.lab.settings.model import ModelSettings


def write(
    folder: Path,
    citations: Citations = CORA,
    *,
    n: int = 660,
    test: int = 90,
    gap: int = 0,
    classes: int = 3,
    features: int = 30,
    words: int = 6,
    edges: int = 1500,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the eight files into ``folder``; return features ``x``, classes ``y``, ``pairs`` and ``test`` by hand.

    The last ``test`` nodes are test nodes, but for ``gap`` of them, which are in no file, as in CiteSeer.
    """
    random = np.random.default_rng(seed)
    known = n - test
    y = np.arange(n) % classes
    own = features // classes
    chosen = np.where(
        random.random((n, words)) < 0.6, y[:, None] * own + random.integers(0, own, (n, words)),
        random.integers(0, features, (n, words)),
    )  # fmt: skip
    x = np.zeros((n, features), np.float32)
    x[np.arange(n)[:, None], chosen] = 1
    first = random.integers(0, n, edges)
    # A neighbour of the same class in four cases of five.
    near = (first + classes * random.integers(1, n // classes - 1, edges)) % n
    second = np.where(random.random(edges) < 0.8, near, random.integers(0, n, edges))
    places = random.permutation(np.arange(known, n))
    # The highest node is always there: its number says how many there are.
    left_out = [int(place) for place in places if place != n - 1][:gap]
    places = np.array([place for place in places if place not in left_out])
    graph: defaultdict[int, list[int]] = defaultdict(list, {node: [] for node in range(n)})
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        if a not in left_out and b not in left_out:
            graph[a].append(b)
            graph[b].append(a)
    x[left_out], y[left_out] = 0, 0
    onehot = np.eye(classes, dtype=np.int32)[y]
    train = 20 * classes
    parts = {
        "x": sp.csr_matrix(x[:train]), "y": onehot[:train], "allx": sp.csr_matrix(x[:known]), "ally": onehot[:known],
        "tx": sp.csr_matrix(x[places]), "ty": onehot[places], "graph": graph,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for part, value in parts.items():
        (folder / citations.file(part)).write_bytes(pickle.dumps(value))
    (folder / citations.file("test.index")).write_text("".join(f"{place}\n" for place in places))
    pairs = {(a, b) for a, found in graph.items() for b in found if a != b}
    return {"x": x, "y": y, "pairs": pairs, "test": places.tolist(), "train": train}


def graph(folder: Path, name: str = "cora", settings: GraphSettings | None = None, **changes: Any) -> Graph:
    write(folder, **changes)
    return load_planetoid(CORA, name, folder, settings)


def settings(
    label: str = "DFA",
    model: str = "GCN",
    task: str = "graphs",
    init_args: dict[str, Any] | None = None,
    **changes: Any,
) -> RunSettings:
    """Twelve steps, evaluated every four; dropout makes the random state matter."""
    built = ModelSettings(model, init_args or {})
    given: dict[str, Any] = {
        "label": label,
        "seed": 0,
        "rule": rule_settings(label, lr=0.01, schedule="constant"),
        "task": task,
    }
    given |= {
        "model": built.describe(),
        "taps": built.suggestion("taps"),
        "error_at": built.suggestion("error_at"),
    }
    return RunSettings(**(given | {"epochs": 3, "steps": 12, "batch_size": 1, "threads": 1} | changes))
