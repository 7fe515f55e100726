"""The rule that has the best matrix of every tap: against what least squares on a model written out gives."""

from __future__ import annotations

import pytest
import torch
from experiments.best_matrix import BestMatrix
from torch import nn

import bpfree
from bpfree.errors import OptionError


class Net(nn.Module):
    """Two taps, h1 = tanh(x W1) and h2 = tanh(D h1 W2) with dropout D, and an error at h2 W3."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first, self.second, self.head = (nn.Linear(a, b, bias=False) for a, b in ((5, 6), (6, 7), (7, 3)))
        self.act1, self.act2, self.drop = nn.Tanh(), nn.Tanh(), nn.Dropout(dropout)
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.drop(self.act1(self.first(x)))
        self.seen.append(h.detach())
        return self.head(self.act2(self.second(h)))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_matrices_are_those_of_least_squares_over_past_batches(dropout: float) -> None:
    torch.manual_seed(0)
    net = Net(dropout).double()
    decay, ridge = 0.7, 1e-9
    attachment = bpfree.attach(net, BestMatrix(decay=decay, ridge=ridge), taps=["act1", "act2"])
    rows: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for _ in range(3):
        x, target = torch.randn(2, 20, 5).double(), torch.randn(2, 20, 3).double()
        net.zero_grad()
        net.seen.clear()
        output = net(x)
        (output - target).square().sum().backward()
        e = 2 * (output - target).detach()
        # The training pass is the one whose dropout the output has.
        h1 = next(h for h in net.seen if torch.equal(torch.tanh(h @ net.second.weight.T) @ net.head.weight.T, output))
        h2 = torch.tanh(h1 @ net.second.weight.T)
        g2 = e @ net.head.weight
        mask = (h1 != 0) / (1 - dropout)
        g1 = ((g2 * (1 - h2**2)) @ net.second.weight) * mask
        rows = [tuple(one * decay**0.5 for one in batch) for batch in rows]
        rows.append(tuple(one.detach().flatten(0, 1) for one in (e, g1, g2)))
    errors, *gradients = (torch.cat(parts) for parts in zip(*rows, strict=True))
    for name, gradient in zip(("act1:6", "act2:7"), gradients, strict=True):
        expected = torch.linalg.lstsq(errors, gradient).solution
        torch.testing.assert_close(attachment.feedback[name], expected, rtol=1e-6, atol=1e-8)
    # Below act2 everything is sent exactly, because do/dh2 is one matrix.
    torch.testing.assert_close(attachment.feedback["act2:7"], net.head.weight, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": -0.1}, {"ridge": 0.0}])
def test_options_that_give_no_matrix_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=r"decay=.* is in"):
        BestMatrix(**options)
