"""A spiking network of snntorch by DFA and by FDFA.

python examples/spiking.py
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bpfree
from bpfree.lab.data import load

try:
    from snntorch import Leaky
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: pip install 'bpfree[examples]'") from error

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--quick", action="store_true", help="half an epoch in place of two")
steps = 32 if parser.parse_args().quick else 2 * 63
data = load("digits")
x, y, test_x, test_y = data.train.x.flatten(1), data.train.y, data.evaluation.x.flatten(1), data.evaluation.y


class SpikingNet(nn.Module):
    """Two layers of leaky integrate-and-fire neurons, and outputs that integrate, over ten steps."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(784, 128), Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(128, 128), Leaky(beta=0.9)
        self.fc3, self.out = nn.Linear(128, 10), Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs' potentials after ten steps of the same image."""
        mem1, mem2, mem3 = self.lif1.reset_mem(), self.lif2.reset_mem(), self.out.reset_mem()
        for _ in range(10):
            spikes, mem1 = self.lif1(self.fc1(x), mem1)
            spikes, mem2 = self.lif2(self.fc2(spikes), mem2)
            _, mem3 = self.out(self.fc3(spikes), mem3)
        return mem3


for rule in (bpfree.BP(), bpfree.FDFA(), bpfree.DFA(), bpfree.Shallow()):
    torch.manual_seed(0)
    model = SpikingNet()
    attachment = bpfree.attach(model, rule, taps=["lif1", "lif2"])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for rows in torch.cat([torch.randperm(len(x)) for _ in range(2)]).split(64)[:steps]:
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    accuracy = 100 * (model(test_x).argmax(1) == test_y).float().mean().item()
    taps = bpfree.alignment(attachment, lambda: F.cross_entropy(model(test_x), test_y)).taps
    cosines = ", ".join(f"{tap.cosine_mean:.2f}" for tap in taps if tap.name.endswith("#10"))
    print(f"{rule!s:10} {accuracy:.1f} % of test digits; cosines in the last step: {cosines}", flush=True)
