"""A graph network of PyTorch Geometric: 40 of 1,000 nodes are labelled, and feedback reaches the others.

python examples/graph.py
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bpfree

try:
    from torch_geometric.nn import GCNConv
    from torch_geometric.utils import add_self_loops, stochastic_blockmodel_graph, to_dense_adj
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: pip install 'bpfree[examples]'") from error
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--quick", action="store_true", help="one seed and 30 steps in place of five and 100")
seeds, steps = (1, 30) if parser.parse_args().quick else (5, 100)


class GCN(nn.Module):
    """Three graph convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = GCNConv(200, 16), GCNConv(16, 16), GCNConv(16, 4)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Return the logits of every node."""
        return self.conv3(self.act2(self.conv2(self.act1(self.conv1(x, edges)), edges)), edges)


y = torch.arange(4).repeat_interleave(250)  # four groups, with more edges within a group than between two
edges = stochastic_blockmodel_graph([250] * 4, torch.full((4, 4), 0.004) + 0.02 * torch.eye(4))
x = torch.randn(1000, 200) + 2 * F.one_hot(y, 200)
known = (torch.arange(1000) % 25) == 0  # ten nodes of each group
adjacency = to_dense_adj(add_self_loops(edges)[0])[0]
scale = adjacency.sum(dim=1).rsqrt()  # normalizes it as GCNConv does
spread = bpfree.DFA(feedback=bpfree.Feedback(spread=2))
for rule in (bpfree.BP(), spread, bpfree.FDFA(), bpfree.DFA(), bpfree.Shallow()):
    right = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = GCN()
        attachment = bpfree.attach(model, rule, seed=seed)
        if rule is spread:
            attachment.adjacency(scale[:, None] * adjacency * scale)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x, edges)[known], y[known]).backward()
            optimizer.step()
        right.append((model(x, edges).argmax(1) == y)[~known].float().mean())
    name = "DFA, errors spread over the edges" if rule is spread else str(rule)
    print(f"{name:33} {100 * torch.stack(right).mean():.1f} % of the nodes without a label", flush=True)
