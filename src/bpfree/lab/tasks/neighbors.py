"""Parts of a graph too large for one step: known nodes, and neighbours drawn for them (Hamilton et al. 2017)."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from bpfree.lab.data.graphs import Graph
from bpfree.lab.data.sparse import rows
from bpfree.lab.errors import SettingsError
from bpfree.rules.direct import IGNORED


class Parts:
    """Batches of a graph, each of some known nodes with the nodes that were drawn for them and the edges drawn along.

    Args:
        data: The graph.
        known: The nodes that are learned from, int64 ``(k,)``.
        size: Known nodes a batch.

    Raises:
        SettingsError: torch_geometric misses the extension that draws neighbours.
    """

    def __init__(self, data: Graph, known: Tensor, size: int) -> None:
        # Imported here: who asks for --help needs none of it.
        from torch_geometric.data import Data
        from torch_geometric.loader import NeighborLoader

        self.graph, self._x, self._y = (data.x, data.edges), data.x, data.y
        try:
            self._loader = NeighborLoader(
                Data(edge_index=data.edges, num_nodes=len(data.y)),
                num_neighbors=data.settings.neighbors,
                input_nodes=known,
                batch_size=size,
                shuffle=True,
                subgraph_type="bidirectional",
            )
            next(iter(self._loader))
        except ImportError as error:
            raise SettingsError(
                "--graph.neighbors needs the extension of torch_geometric that draws them: install pyg-lib or "
                "torch-sparse for your torch (pytorch-geometric.readthedocs.io, Installation), or leave the option out "
                "and learn from the whole graph at once."
            ) from error

    every_step = False  # evaluating the whole graph takes as long as many steps

    def steps(self, n: int) -> Iterator[Any]:
        """Yield ``n`` batches, ``((features, edges), classes)``, over the known nodes, in a new order for each pass."""
        passes = itertools.chain.from_iterable(iter(self._loader) for _ in itertools.count())
        return map(self._batch, itertools.islice(passes, n))

    def _batch(self, part: Any) -> Any:
        known = torch.full_like(part.n_id, IGNORED)
        known[: part.batch_size] = self._y[part.n_id[: part.batch_size]]
        drawn = (rows(self._x, part.n_id), part.edge_index), known
        return move_data_to_device(drawn, self.graph[1].device)

    def to(self, device: torch.device) -> Parts:
        """Return the same source with batches and graph on a device; it draws on the CPU."""
        moved = copy.copy(self)
        moved.graph = move_data_to_device(self.graph, device)
        return moved
