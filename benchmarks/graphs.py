"""What an epoch of a graph network takes: a training step on the whole graph, and with it an evaluation of all nodes.

The references are the same networks of torch_geometric's own layers, with what they can keep of the graph kept, trained
by backpropagation.

    python benchmarks/graphs.py --data-dir DIR [--data cora] [--nets GCN GAT] [--only "DFA*"] [--pairs N]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict

import torch
import torch.nn.functional as F
import torch_geometric.nn as gnn
from torch import nn

import bpfree
from bpfree.lab.data import load
from bpfree.lab.data.graphs import Graph
from bpfree.lab.settings.model import ModelSettings
from bpfree.lab.time_and_memory import paired_ratio
from common import results, script

REFERENCE = "torch_geometric, BP"
RULES: dict[str, bpfree.Rule] = {"BP": bpfree.BP(), "DFA": bpfree.DFA()}


class Theirs(nn.Module):
    """Two of torch_geometric's convolutions, on dense features and a list of edges."""

    def __init__(
        self, first: nn.Module, second: nn.Module, activation: nn.Module, dropouts: tuple[float, float]
    ) -> None:
        super().__init__()
        self.first, self.act, self.second, self.dropouts = first, activation, second, dropouts

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """The logarithms of the classes' probabilities for all nodes."""
        before, between = self.dropouts
        h = self.act(self.first(F.dropout(x, before, self.training), edges))
        return F.log_softmax(self.second(F.dropout(h, between, self.training), edges), dim=1)


def theirs(name: str, features: int, classes: int) -> Theirs:
    """The reference of a network of the lab, as published."""
    if name == "GCN":
        layers = (gnn.GCNConv(features, 16, cached=True), gnn.GCNConv(16, classes, cached=True))
        return Theirs(*layers, nn.ReLU(), (0.0, 0.5))
    if name == "ChebNet":
        return Theirs(gnn.ChebConv(features, 16, 2), gnn.ChebConv(16, classes, 2), nn.ReLU(), (0.0, 0.5))
    layers = (gnn.GATConv(features, 8, heads=8, dropout=0.6), gnn.GATConv(64, classes, dropout=0.6))
    return Theirs(*layers, nn.ELU(), (0.6, 0.6))


NETS = ("GCN", "ChebNet", "GAT")


def epoch(model: nn.Module, x: torch.Tensor, graph: Graph, *, evaluated: bool) -> Callable[[], None]:
    """A step by Adam on the nodes that are known, and behind it the model's output for all nodes."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4, fused=True)
    known = graph.nodes(0).train

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        F.nll_loss(model(x, graph.edges)[known], graph.y[known]).backward()
        optimizer.step()
        if evaluated:
            model.eval()
            with torch.no_grad():
                model(x, graph.edges)

    return step


def ours(name: str, rule: bpfree.Rule, graph: Graph) -> nn.Module:
    """A network of the lab, by a rule."""
    built = ModelSettings(name)
    model = built.build(graph.shape, graph.classes)
    bpfree.attach(model, rule, taps=built.suggestion("taps"), error_at=built.suggestion("error_at"), seed=0)
    return model


def rows_of(name: str, graph: Graph, only: list[str] | None, pairs: int) -> Iterator[results.Row]:
    """A step and an epoch of every rule beside the reference's."""
    for evaluated in (False, True):
        what = "epoch" if evaluated else "step"
        torch.manual_seed(0)
        reference = epoch(theirs(name, *graph.shape, graph.classes), graph.x.to_dense(), graph, evaluated=evaluated)
        for label, rule in RULES.items():
            if script.chosen(f"{label}, {what}", only):
                subject = epoch(ours(name, rule, graph), graph.x, graph, evaluated=evaluated)
                time = asdict(paired_ratio(subject, reference, repeats=pairs, warmup=3))
                subject_name, reference_name = f"{label}, {what}", f"{REFERENCE}, {what}"
                yield {
                    "net": f"{name}, {graph.name}",
                    "subject": subject_name,
                    "reference": reference_name,
                    "time": time,
                }


HEADER = """\
| network | subject | ms | torch_geometric's layers, BP, ms | ratio | quartiles |
| --- | --- | --- | --- | --- | --- |"""


def line(row: results.Row) -> str:
    """One row of the printed table."""
    time = row["time"]
    both = " | ".join(f"{1e3 * time[part]:.1f}" for part in ("subject_seconds", "reference_seconds"))
    spread = f"{time['lower']:.2f} to {time['upper']:.2f}"
    return f"| {row['net']} | {row['subject']} | {both} | {time['median']:.2f} | {spread} |"


def main() -> None:
    """Measure, print the table, put the rows into the file."""
    script.keep_memory()
    parser = script.parser(__doc__, "graphs.json")
    parser.add_argument("--data", default="cora", help="cora, citeseer or pubmed (default: cora)")
    parser.add_argument("--data-dir", help="the folder of the graph's files (default: a download)")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS), metavar="NET", help=", ".join(NETS))
    parser.add_argument("--pairs", type=int, default=100, help="pairs a row (default: 100)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    graph, run = load(options.data, options.data_dir), script.run()
    print(HEADER)
    for name in options.nets:
        for found in rows_of(name, graph, options.only, options.pairs):
            print(line(found), flush=True)
            results.write(options.out, run, [found])


if __name__ == "__main__":
    main()
