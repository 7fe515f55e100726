"""Graphs: features, classes and edges of the nodes, and the nodes that are learned from."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from bpfree.lab.errors import SettingsError

Split: TypeAlias = Literal["public", "stratified"]


@dataclass(frozen=True, kw_only=True)
class GraphSettings:
    """The options for reading a graph.

    Args:
        split: Which nodes are learned from: the published ones (20 a class for training, 500 for validation, 1,000 for
            test), or stratified folds drawn from the run's seed (20 % of all nodes for training, 20 % for validation,
            60 % for test).
        normalize: Divide each node's features by their sum, where that is more than 1.
        neighbors: For graphs that are too large for one step: how many neighbours are drawn for a node, layer by layer
            from the last, one number for each convolution. A step then has --batch-size known nodes. By default the
            whole graph is one step.
    """

    split: Split = "public"
    normalize: bool = True
    neighbors: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if any(number < 1 for number in self.neighbors):
            raise SettingsError(f"--graph.neighbors {self.neighbors}: numbers from 1 on, one for each convolution.")


class Nodes(NamedTuple):
    """Indices of the nodes that are learned from, chosen by, and measured on; int64 each."""

    train: Tensor
    validation: Tensor
    test: Tensor


class Links(NamedTuple):
    """The edges of a graph, divided for link prediction.

    Attributes:
        train: Edges that are known, in both directions, ``(2, 2 m)``.
        validation: Edges that are held out, in one direction.
        validation_others: As many pairs of nodes without an edge.
        test: Other edges that are held out.
        test_others: As many pairs of nodes without an edge.
    """

    train: Tensor
    validation: Tensor
    validation_others: Tensor
    test: Tensor
    test_others: Tensor


@dataclass(frozen=True)
class Graph:
    """A graph whose nodes have features and classes.

    Attributes:
        name: The data set's name.
        x: The nodes' features, sparse (CSR), float32 ``(n, features)``.
        y: Their classes, int64 ``(n,)``.
        edges: Undirected edges in both directions, sorted, none twice and none from a node to itself, int64 ``(2, m)``.
        public: The published nodes for training, validation and test.
        settings: The options that it was read with.
        checksums: File name -> SHA-256 of what was read.
        origin: A sentence that says if the files are the published ones.
    """

    name: str
    x: Tensor
    y: Tensor
    edges: Tensor
    public: Nodes
    settings: GraphSettings = field(default_factory=GraphSettings)
    checksums: dict[str, str] = field(default_factory=dict)
    origin: str = ""

    measured_on: ClassVar[str] = "test"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one node's features, ``(features,)``."""
        return tuple(self.x.shape[1:])

    @functools.cached_property
    def classes(self) -> int:
        """The number of classes."""
        return int(self.y.max()) + 1

    def first(self, n: int) -> Graph:
        """Return the graph itself: a graph is learned from as a whole."""
        return self

    def nodes(self, seed: int) -> Nodes:
        """Return the nodes for training, validation and test in a run of this seed."""
        if self.settings.split == "public":
            return self.public
        # Imported here: who asks for --help needs none of it.
        from sklearn.model_selection import StratifiedKFold

        folds = StratifiedKFold(5, shuffle=True, random_state=seed).split(self.y, self.y)
        found = [torch.from_numpy(fold) for _, fold in folds]
        return Nodes(found[0], found[1], torch.cat(found[2:]))

    def links(self, seed: int) -> Links:
        """Return the edges in a run of this seed: 5 % for validation, 10 % for test, as in Kipf and Welling 2016."""
        generator = torch.Generator().manual_seed(seed)
        once = self.edges[:, self.edges[0] < self.edges[1]]
        once = once[:, torch.randperm(once.shape[1], generator=generator)]
        validation, test = int(0.05 * once.shape[1]), int(0.1 * once.shape[1])
        held, known = once[:, : validation + test], once[:, validation + test :]
        others = unlinked(self.edges, len(self.y), validation + test, generator, once=True)
        return Links(
            torch.cat([known, known.flip(0)], dim=1),
            held[:, :validation],
            others[:, :validation],
            held[:, validation:],
            others[:, validation:],
        )

    def describe(self) -> dict[str, Any]:
        """Return the graph as a report shows it; sizes are numbers of nodes."""
        nodes = self.nodes(0)
        return {
            "name": self.name,
            "n_train": len(nodes.train),
            "n_eval": len(nodes.test),
            "measured_on": self.measured_on,
            "classes": self.classes,
            "shape": list(self.shape),
            "nodes": len(self.y),
            "edges": self.edges.shape[1] // 2,
            "split": self.settings.split,
            "features": "divided by their sum" if self.settings.normalize else "as published",
            "checksums": self.checksums,
            **({"neighbors": self.settings.neighbors} if self.settings.neighbors else {}),
            **({"origin": self.origin} if self.origin else {}),
        }


@dataclass(frozen=True)
class LinkedGraph(Graph):
    """A graph whose edges are predicted."""

    def describe(self) -> dict[str, Any]:
        """Return the graph as a report shows it; sizes are numbers of edges."""
        links = self.links(0)
        sizes = {"n_train": links.train.shape[1] // 2, "n_eval": links.test.shape[1]}
        return {**super().describe(), **sizes, "split": "edges"}


def unlinked(edges: Tensor, n: int, k: int, generator: torch.Generator | None = None, *, once: bool = False) -> Tensor:
    """Draw ``k`` random pairs of different nodes among ``n`` that no edge joins, int64 ``(2, k)``.

    Args:
        edges: The edges in both directions, ``(2, m)``.
        n: The number of nodes.
        k: The number of pairs.
        generator: Where random numbers come from; None takes torch's own.
        once: No pair comes twice, in no direction, and the first node is the lower one.
    """
    device = edges.device
    taken = torch.cat([edges[0] * n + edges[1], torch.arange(n, device=device) * (n + 1)])
    found = torch.empty(0, dtype=torch.int64, device=device)
    while len(found) < k:
        # More than are missing: in a sparse graph nearly every pair will do.
        drawn = torch.randint(n * n, (k - len(found) + k // 8 + 8,), generator=generator, device=device)
        if once:
            first, second = drawn // n, drawn % n
            drawn = torch.minimum(first, second) * n + torch.maximum(first, second)
        found = torch.cat([found, drawn[~torch.isin(drawn, taken)]])
        if once:
            # The first of equal ones, in the order in which they were drawn.
            _, places = np.unique(found.cpu().numpy(), return_index=True)
            found = found[torch.from_numpy(np.sort(places)).to(device)]
    return torch.stack([found[:k] // n, found[:k] % n])
