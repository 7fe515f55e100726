"""Two rules of one's own: DFA that sends one number of the error, and feedback alignment with one-bit weights.

python examples/own_rule.py
"""

import argparse
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bpfree
from bpfree.lab.data import load

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--quick", action="store_true", help="one epoch in place of ten")
options = parser.parse_args()


@dataclass(frozen=True, kw_only=True)
class TopDFA(bpfree.DirectRule):
    """DFA that sends only the ``k`` largest numbers of each sample's error."""

    k: int

    def vector(self, delivery: bpfree.Delivery) -> Tensor:
        """Return what is projected, ``(N, c)``: the error, all but k numbers of each row set to 0."""
        places = delivery.error.abs().topk(self.k, dim=1).indices
        return torch.zeros_like(delivery.error).scatter(1, places, delivery.error.gather(1, places))


@dataclass(frozen=True)
class OneBitFA(bpfree.LayerwiseRule):
    """Feedback alignment whose backward weights are random signs."""

    def draw(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return B of a layer, of its weight's shape."""
        return torch.randn(weight.shape, generator=generator).sign() * weight.std()


data = load("digits")
x, y, test_x, test_y = data.train.x.flatten(1), data.train.y, data.evaluation.x.flatten(1), data.evaluation.y
for rule in (bpfree.BP(), bpfree.DFA(), TopDFA(k=2), TopDFA(k=1), bpfree.FA(), OneBitFA(), bpfree.Shallow()):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10))
    attachment = bpfree.attach(model, rule)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(1 if options.quick else 10):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    accuracy = 100 * (model(test_x).argmax(1) == test_y).float().mean().item()
    report = bpfree.alignment(attachment, lambda: F.cross_entropy(model(test_x), test_y))
    print(f"{rule!s:12} {accuracy:5.1f} % ", *(f"{tap.cosine_mean:6.2f}" for tap in report.taps), flush=True)
