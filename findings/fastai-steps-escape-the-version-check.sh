#!/usr/bin/env bash
# fastai 2.8.12, torch 2.13.0: a step of fastai's optimizers between a forward pass and its backward pass is not noticed.
#
# Autograd counts the writes to every tensor (its version), and raises an error where a weight that a backward pass needs has been changed
# in place since. The documentation of fastai's Optimizer calls it a "base optimizer class"; its steps write to parameter.data, whose
# writes autograd does not count.
#
# Seen: a network of two layers runs forward on a second batch, steps on the first, and runs backward on the second. With torch.optim.SGD
# torch raises "modified by an inplace operation". With fastai's SGD, at the same rate and with the same weights afterwards, nothing is
# raised, the version of every weight is as before, and the first layer's gradient is that of neither the old nor the new weights.
#
# Why it matters: errors that arrive late (pipelines, delayed feedback, learning in several processes) step between the passes. Where such a
# loop is moved to fastai, the check that would find the mistake is off, and whatever looks at versions to see whether weights have moved
# (a cache, a rule that counts steps) sees none move.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 fastai==2.8.12 fastprogress==1.0.3 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import sys

import fastai.optimizer
import torch
from torch import nn

RATE = 0.5


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def late(make):
    """Step on a first batch between the passes of a second one; return network, whether versions moved, and the error."""
    net = network()
    optimizer = make(list(net.parameters()))
    second = net(second_batch).square().mean()
    net(first_batch).square().mean().backward()
    before = [weight._version for weight in net.parameters()]
    optimizer.step()
    moved = [weight._version for weight in net.parameters()] != before
    for weight in net.parameters():
        weight.grad = None
    try:
        second.backward()
    except RuntimeError as error:
        return net, moved, str(error)
    return net, moved, ""


def at_once(net):
    """The gradient of the first layer on the second batch, at the weights of ``net``."""
    (gradient,) = torch.autograd.grad(net(second_batch).square().mean(), [net[0].weight])
    return gradient


torch.manual_seed(1)
first_batch, second_batch = torch.randn(16, 4), torch.randn(16, 4)
by_torch, torch_moved, told = late(lambda weights: torch.optim.SGD(weights, lr=RATE))
by_fastai, fastai_moved, untold = late(lambda weights: fastai.optimizer.SGD(weights, lr=RATE))
same = all(torch.allclose(a, b) for a, b in zip(by_torch.parameters(), by_fastai.parameters(), strict=True))
found, old, new = by_fastai[0].weight.grad, at_once(network()), at_once(by_fastai)
off = [float((found - other).norm() / other.norm()) for other in (old, new)] if found is not None else [0.0, 0.0]
print(f"the same weights after the step: {same}")
print(f"torch.optim.SGD: versions moved {torch_moved}, error {told[:70]!r}")
print(f"fastai's SGD:    versions moved {fastai_moved}, error {untold!r}")
print(f"its gradient differs from that of the old weights by {off[0]:.0%}, of the new ones by {off[1]:.0%}")
silent = not fastai_moved and not untold and min(off) > 0.01
sys.exit(not (same and torch_moved and "inplace" in told and silent))
PYTHON
