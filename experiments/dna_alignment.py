"""Alignment of DFA in DNAConv at each module that the code of Launay et al. 2020 hooks, edge by edge."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torch_geometric.nn as gnn
from torch import Tensor, nn

import bpfree
from bpfree.lab.data import load
from bpfree.lab.data.graphs import Graph, GraphSettings
from bpfree.lab.models.graphs.nets import DNA
from bpfree.lab.tasks.published import row_cosines

LAYERS, HIDDEN, HEADS, GROUPS = 5, 128, 8, 16
PARTS = ("lin_q", "lin_k", "lin_v")


class Published(nn.Module):
    """The network of torch_geometric's own layers, whose projections see every edge; earlier layers get no gradient.

    Args:
        shape: ``(features,)``.
        classes: The number of classes.
    """

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(shape[0], HIDDEN), nn.Linear(HIDDEN, classes)
        self.convs = nn.ModuleList([gnn.DNAConv(HIDDEN, HEADS, GROUPS) for _ in range(LAYERS)])

    def forward(self, x: Tensor, edges: Tensor, tap: Callable[[Tensor], Tensor]) -> Tensor:
        """The logarithms of the classes' probabilities; ``tap`` is called with what every hidden layer gives."""
        h = tap(self.lin1(x).relu())
        stack = h[:, None]
        for conv in self.convs:
            h = tap(conv(stack, edges).relu())
            stack = torch.cat([stack.detach(), h[:, None]], dim=1)
        return self.lin2(h).log_softmax(1)


def measured(module: str, seed: int, data_dir: str) -> dict[str, float]:
    """The published measure at a module after 250 steps on Cora, what of it is counted as 1, and the others' mean."""
    signals, exact = _both(seed, data_dir)
    return compared(signals[module], exact[module])


@functools.cache  # all modules of one seed are seen in one network
def _both(seed: int, data_dir: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    graph = load("cora", data_dir, graph=GraphSettings(split="stratified", normalize=False))
    state, B = trained(graph, seed)
    model = Published(graph.shape, graph.classes)
    model.load_state_dict(state)
    return gradients(model, graph, B), gradients(model, graph, None)


def trained(graph: Graph, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """The weights that DFA finds, and its feedback, scaled."""
    torch.manual_seed(seed)
    model, known = DNA(graph.shape, graph.classes, dropout=0.0, attention_dropout=0.0), graph.nodes(seed).train
    rule = bpfree.DFA(feedback=bpfree.Feedback(normalization="launay2020-code"))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    with bpfree.attach(model, rule, taps=list(DNA.suggested_taps), seed=seed) as attachment:
        for _ in range(250):
            optimizer.zero_grad()
            F.nll_loss(model(graph.x, graph.edges)[known], graph.y[known]).backward()
            optimizer.step()
        return model.state_dict(), attachment.feedback.matrix(attachment.mechanism.sites[0])


def gradients(model: Published, graph: Graph, B: Tensor | None) -> dict[str, Tensor]:
    """What comes down to the outputs of linear modules, of the loss over all nodes: by DFA with ``B``, or exactly."""
    outputs: dict[str, Tensor] = {}
    points: list[Tensor] = []

    def tap(h: Tensor) -> Tensor:
        points.append(h)
        return h if B is None else h.detach().requires_grad_()

    names = ["lin1", *(f"convs.{number}.multi_head.{part}" for number in range(LAYERS) for part in PARTS)]
    hooks = [model.get_submodule(name).register_forward_hook(_kept(outputs, name)) for name in names]
    output = model(graph.x.to_dense(), graph.edges, tap)
    for hook in hooks:
        hook.remove()
    loss = F.nll_loss(output, graph.y)
    if B is None:
        found = torch.autograd.grad(loss, [outputs[name] for name in names])
    else:
        (error,) = torch.autograd.grad(loss, output, retain_graph=True)
        found = torch.autograd.grad(points, [outputs[name] for name in names], [error @ B] * len(points))
    return dict(zip(names, found, strict=True))


def _kept(outputs: dict[str, Tensor], name: str) -> Callable[..., None]:
    return lambda module, args, output: outputs.update({name: output})


def compared(signal: Tensor, exact: Tensor) -> dict[str, float]:
    """The published measure over rows, and what it is made of."""
    cosine, nothing = row_cosines(signal.flatten(1), exact.flatten(1))
    whole = torch.where(nothing, 1.0, cosine)
    return {
        "published": float(whole.mean()),
        "std": float(whole.std()),
        "counted_as_1": float(nothing.float().mean()),
        "others": float(cosine[~nothing].mean()),
    }
