"""Fine-tuning by feedback: a network that backpropagation trained learns turned digits.

python examples/fine_tuning.py
"""

import argparse
import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bpfree
from bpfree.lab.data import load

try:
    import matplotlib.pyplot as plt
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: pip install 'bpfree[examples]'") from error

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--quick", action="store_true", help="three epochs in place of ten, twice")
epochs = 3 if parser.parse_args().quick else 10
data = load("digits")
x, y, test_x, test_y = data.train.x, data.train.y, data.evaluation.x, data.evaluation.y
turned, test_turned = x.rot90(dims=(2, 3)), test_x.rot90(dims=(2, 3))


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the accuracy, %."""
    with torch.no_grad():
        return 100 * (model(x).argmax(1) == y).float().mean().item()


def train(model: nn.Module, x: Tensor, y: Tensor, lr: float) -> list[float]:
    """Train, and return the accuracy on turned test digits before each epoch and at the end."""
    optimizer, found = torch.optim.Adam(model.parameters(), lr=lr), [accuracy(model, test_turned, test_y)]
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        found.append(accuracy(model, test_turned, test_y))
    return found


torch.manual_seed(0)
hidden = [part for width in (784, 256, 256, 256) for part in (nn.Linear(width, 256), nn.ReLU())]
train(trained := nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, 10)), x, y, lr=1e-3)
print(f"trained by backpropagation: {accuracy(trained, test_x, test_y):.1f} % of upright test digits")
for rule in (bpfree.BP(), bpfree.GrAPE(), bpfree.FDFA(), bpfree.DFA(), bpfree.Shallow()):
    torch.manual_seed(0)
    model = copy.deepcopy(trained)
    bpfree.attach(model, rule)
    found = train(model, turned[:500], y[:500], lr=3e-4)
    print(f"{rule!s:10} on turned digits: {found[-1]:.1f} %, {found[0]:.1f} % before")
    plt.plot(found, marker=".", label=str(rule))
plt.xlabel("epochs of 500 turned digits"), plt.ylabel("accuracy on turned test digits, %"), plt.legend()
plt.savefig("fine_tuning.png", dpi=100)
