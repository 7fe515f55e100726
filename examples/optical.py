# %% [markdown]
# # An optical co-processor makes the feedback
# Light of three levels passes a fixed random medium and falls on an 8-bit camera. How much noise may the camera have?

# %%
import argparse
import sys
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bpfree
from bpfree.lab.data import load

try:
    import matplotlib.pyplot as plt
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: pip install 'bpfree[examples]'") from error

parser = argparse.ArgumentParser()
parser.add_argument("--quick", action="store_true", help="one epoch in place of five, two levels of noise")
settings = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has no command line
epochs, levels = (1, [0.25, 8]) if settings.quick else (5, [0.25, 0.5, 1, 2, 4, 8, 16, 32])
data = load("digits")
x, y, test_x, test_y = data.train.x.flatten(1), data.train.y, data.evaluation.x.flatten(1), data.evaluation.y
medium = torch.randn(10, 256, generator=torch.Generator().manual_seed(0)) / 16


def coprocessor(error: Tensor, sites: list[bpfree.Site], noise: float) -> list[Tensor]:
    light = error @ medium
    light = light + noise * light.std() * torch.randn_like(light)
    step = light.abs().max().clamp_min(1e-12) / 127
    return [(light / step).round() * step] * len(sites)  # all taps have 256 features here


def accuracy(rule: bpfree.Rule) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10))
    bpfree.attach(model, rule)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for rows in torch.cat([torch.randperm(len(x)) for _ in range(epochs)]).split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return 100 * (model(test_x).argmax(1) == test_y).float().mean().item()


# %%
options = {"error": "ternary", "threshold": 0.2}  # above 0.1, a new network's error at each wrong class
found = {noise: accuracy(bpfree.DFA(**options, feedback=partial(coprocessor, noise=noise))) for noise in levels}
print(*(f"noise {noise:<5} {percent:.1f} %" for noise, percent in found.items()), sep="\n")
for rule, style in [(bpfree.BP(), "-"), (bpfree.DFA(), "--"), (bpfree.Shallow(), ":")]:
    print(f"{rule!s:11} {(reached := accuracy(rule)):.1f} %", flush=True)
    plt.axhline(reached, color="grey", linestyle=style, label=str(rule))
plt.semilogx(list(found), list(found.values()), base=2, marker="o", label="DFA by the co-processor")
plt.xlabel("noise of a pixel / deviation of the light"), plt.ylabel("test accuracy, %"), plt.legend()
plt.savefig("optical.png", dpi=100)
