#!/usr/bin/env bash
# nngeometry 0.4, torch 2.13.0: the tangent kernel of a grouped or depthwise convolution is that of a full convolution.
#
# The documentation of LayerCollection.from_model: "using all parameters of the model", with an exception for "layers that are not
# supported yet". Conv2d with groups is taken, but groups is left out: every input channel is paired with every output channel, also those
# that no weight joins. There is no error and no warning.
#
# Seen: a depthwise convolution of 4 channels and a linear layer have 151 parameters, and numel() of their layer collection is 259. Their
# tangent kernel (GramMatrix) is 56% off autograd's (25% with two groups); it is that of a full convolution with zeros for the missing
# weights. The trace of the Fisher information matrix (PMatDense, PMatDiag) is 1.65 times as large as it should be (1.29). With groups=1
# all are right.
#
# Why it matters: depthwise convolutions are what small networks and networks for edge hardware are made of, and their channels are
# independent on purpose. A kernel has one number for each pair of samples, and does not show how many weights went into it. Multiplying
# the matrix with the network's weights raises an error for the sizes, which is how it may be noticed.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Without its dependencies: torchvision is asked for, but not used.
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps nngeometry==0.4 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import copy
import sys

import torch
from nngeometry import GramMatrix
from nngeometry.layercollection import LayerCollection
from nngeometry.metrics import FIM
from nngeometry.object import PMatDense, PMatDiag

CHANNELS, SIDE, OUTPUTS, SAMPLES = 4, 5, 3, 10


def build(groups):
    torch.manual_seed(0)
    readout = torch.nn.Linear(CHANNELS * (SIDE - 2) ** 2, OUTPUTS)
    return torch.nn.Sequential(torch.nn.Conv2d(CHANNELS, CHANNELS, 3, groups=groups), torch.nn.ReLU(), torch.nn.Flatten(), readout)


def full(network):
    """The same network with a full convolution, whose weights are zero where the grouped one has none."""
    network = copy.deepcopy(network)
    grouped = network[0]
    network[0] = torch.nn.Conv2d(CHANNELS, CHANNELS, 3)
    size = CHANNELS // grouped.groups
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].bias.copy_(grouped.bias)
        for out in range(CHANNELS):
            begin = out // size * size
            network[0].weight[out, begin : begin + size] = grouped.weight[out]
    return network


def by_autograd(network, x):
    """Outputs by samples by parameters."""
    weights = list(network.parameters())
    rows = [[torch.autograd.grad(out, weights, retain_graph=True) for out in network(row[None])[0]] for row in x]
    return torch.stack([torch.stack([torch.cat([g.flatten() for g in row[out]]) for row in rows]) for out in range(OUTPUTS)])


def kernel(jacobian):
    return torch.einsum("osp,qtp->osqt", jacobian, jacobian)


def off(found, right):
    return ((found - right).norm() / right.norm()).item()


as_described = True
for groups in (1, 2, CHANNELS):
    network = build(groups)
    x = torch.randn(SAMPLES, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    jacobian, of_full = by_autograd(network, x), by_autograd(full(network), x)
    has, counted = sum(of.numel() for of in network.parameters()), LayerCollection.from_model(network).numel()
    gram = GramMatrix(network, (x.clone(), torch.zeros(SAMPLES))).to_torch()
    trace = jacobian.square().sum() / SAMPLES
    traces = {
        of.__name__: (FIM(network, (x.clone(), torch.zeros(SAMPLES)), of, variant="regression").trace() / trace).item()
        for of in (PMatDense, PMatDiag)
    }
    right, wrong = off(gram, kernel(jacobian)), off(gram, kernel(of_full))
    print(
        f"groups={groups}: {has} parameters, {counted} counted; the kernel is {right:.1%} off, and {wrong:.1%} off that of a full"
        f" convolution; the trace of FIM is {', '.join(f'{ratio:.2f} times ({name})' for name, ratio in traces.items())} the right one"
    )
    fine = groups == 1
    as_described &= (counted == has) == fine and (right < 1e-4) == fine and wrong < 1e-4
    as_described &= all((abs(ratio - 1) < 1e-4) == fine for ratio in traces.values())
sys.exit(not as_described)
PYTHON
