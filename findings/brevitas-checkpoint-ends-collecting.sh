#!/usr/bin/env bash
# brevitas 0.13.4, torch 2.13.0: a checkpoint from the first 300 steps ends the collecting of ranges when it is loaded.
#
# The documentation of ParameterFromRuntimeStatsScaling calls collect_stats_steps the "Number of calls to the forward method in training
# mode to collect statistics for". The number of calls so far is not in state_dict(), and the average so far is saved as the learned
# scale. load_state_dict takes the scale as final. All keys match, and there is no warning.
#
# Seen: a network is saved at step 20 with a range of 4.498. Without interruption, and by a deep copy, the range is 6.259 after 200 more
# steps. With the network and its optimizer loaded from the checkpoint it is still 4.498, and the loss is more than twice as large.
#
# Why it matters: a run that was interrupted early goes on with ranges of the first few batches, and gives other results than one that
# was not. It also holds for a copy made by load_state_dict early in training. Resume from checkpoints behind the collecting only, or
# copy the network by copy.deepcopy.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 brevitas==0.13.4 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import copy
import sys

import torch
from brevitas.nn import QuantReLU

BEFORE, AFTER = 20, 200  # steps before and after the checkpoint; QuantReLU collects for 300


def training():
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(5, 6), QuantReLU(), torch.nn.Linear(6, 2))
    return net, torch.optim.SGD(net.parameters(), lr=0.01)


def train(net, optimizer, steps, seed):
    """Return the mean loss of the last ten steps."""
    generator = torch.Generator().manual_seed(seed)
    net.train()
    losses = []
    for _ in range(steps):
        x = 3 * torch.randn(16, 5, generator=generator)
        optimizer.zero_grad()
        loss = (net(x) - x[:, :2]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / 10


def largest(net):
    """The largest number that comes out of the activation in evaluation mode."""
    net.eval()
    return net[1](torch.tensor(1e6)).item()


net, optimizer = training()
train(net, optimizer, BEFORE, seed=0)
saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
resumed, its_optimizer = training()
print(f"loading: {resumed.load_state_dict(saved[0])}")
its_optimizer.load_state_dict(saved[1])
copied = copy.deepcopy(net)
at_checkpoint = largest(net), largest(resumed)
print(f"range at the checkpoint, step {BEFORE}: {at_checkpoint[0]:.3f}, loaded {at_checkpoint[1]:.3f}")
loss, ranges = {}, {}
for name, of, by in (
    ("uninterrupted", net, optimizer),
    ("deep copy", copied, torch.optim.SGD(copied.parameters(), lr=0.01)),
    ("checkpoint loaded", resumed, its_optimizer),
):
    loss[name] = train(of, by, AFTER, seed=1)
    ranges[name] = largest(of)
    print(f"{name}, {AFTER} steps later: range {ranges[name]:.3f}, loss {loss[name]:.4f}")

same = ranges["uninterrupted"] == ranges["deep copy"] and loss["uninterrupted"] == loss["deep copy"]
kept = ranges["checkpoint loaded"] == at_checkpoint[0] == at_checkpoint[1]
differs = ranges["uninterrupted"] > 1.2 * at_checkpoint[0] and loss["checkpoint loaded"] > 1.2 * loss["uninterrupted"]
sys.exit(not (same and kept and differs))
PYTHON
