#!/usr/bin/env bash
# nngeometry 0.4, torch 2.13.0: in the Jacobian, a layer that runs more than once has the input of its last run for all of its runs.
#
# The documentation of Jacobian: "per-examples jacobians of the loss w.r.t network parameters", "or of any function such as the network's
# output". One input is kept for each layer, and the gradients of all runs are multiplied by it. There is no error and no warning; layers
# that are not known raise one.
#
# Seen: in a recurrent cell of two Linear layers that runs for three steps, the Jacobian is 33% off autograd's, the Fisher information
# matrix (FIM) 36% and the tangent kernel (GramMatrix) 46%. The diagonal that PMatDiag gives differs from that of PMatDense by 21%. With
# one step, or with a copy of the cell for every step, all are right. The gradient of a bias, which needs no input, is right always.
#
# Why it matters: recurrent and spiking networks, tied layers and shared heads run layers more than once. Whoever measures with it how a
# rule's direction agrees with the natural gradient, or how the tangent kernel changes, gets numbers of no network. They look sound: the
# matrix is symmetric and positive. Use torch.func, or copies of the layer, and add the columns of their Jacobians up.
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
import sys

import torch
from nngeometry import GramMatrix, Jacobian
from nngeometry.metrics import FIM
from nngeometry.object import PMatDense, PMatDiag

FEATURES, HIDDEN, OUTPUTS, SAMPLES = 4, 6, 3, 10


class Recurrent(torch.nn.Module):
    """A cell over some steps; untied, it has a copy of the cell for each of them."""

    def __init__(self, steps, untied=False):
        super().__init__()
        torch.manual_seed(0)
        cell = torch.nn.ModuleDict({"enter": torch.nn.Linear(FEATURES, HIDDEN), "again": torch.nn.Linear(HIDDEN, HIDDEN, bias=False)})
        self.readout = torch.nn.Linear(HIDDEN, OUTPUTS)
        self.cells = torch.nn.ModuleList([cell])
        for _ in range(steps - 1 if untied else 0):
            copy = torch.nn.ModuleDict({"enter": torch.nn.Linear(FEATURES, HIDDEN), "again": torch.nn.Linear(HIDDEN, HIDDEN, bias=False)})
            copy.load_state_dict(cell.state_dict())
            self.cells.append(copy)
        self.steps = steps

    def forward(self, x):
        state = torch.zeros(len(x), HIDDEN)
        for step in range(self.steps):
            cell = self.cells[min(step, len(self.cells) - 1)]
            state = torch.tanh(cell["enter"](x[:, step]) + cell["again"](state))
        return self.readout(state)


def by_autograd(network, x):
    """Outputs by samples by parameters, in the order of nngeometry's layers."""
    layers = [of for of in network.modules() if isinstance(of, torch.nn.Linear)]
    weights = [of for layer in layers for of in (layer.weight, layer.bias) if of is not None]
    rows = [[torch.autograd.grad(out, weights, retain_graph=True) for out in network(row[None])[0]] for row in x]
    return torch.stack([torch.stack([torch.cat([g.flatten() for g in row[out]]) for row in rows]) for out in range(OUTPUTS)])


def off(found, right):
    return ((found - right).norm() / right.norm()).item()


def measure(network):
    examples = torch.randn(SAMPLES, network.steps, FEATURES, generator=torch.Generator().manual_seed(1)), torch.zeros(SAMPLES)
    right = by_autograd(network, examples[0].clone())
    fisher = torch.einsum("osp,osq->pq", right, right) / SAMPLES
    dense = FIM(network, examples, PMatDense, variant="regression").to_torch()
    found = {
        "Jacobian": off(Jacobian(network, examples).to_torch(), right),
        "FIM": off(dense, fisher),
        "GramMatrix": off(GramMatrix(network, examples).to_torch(), torch.einsum("osp,qtp->osqt", right, right)),
        "PMatDiag from the diagonal of PMatDense": off(FIM(network, examples, PMatDiag, variant="regression").get_diag(), dense.diag()),
    }
    return found, Jacobian(network, examples).to_torch(), right, examples[0].detach()


as_described = True
for steps, untied in ((1, False), (3, False), (3, True)):
    network = Recurrent(steps, untied)
    found, jacobian, right, x = measure(network)
    print(f"{steps} steps{', a copy for each' * untied}: " + ", ".join(f"{name} {of:.1%} off" for name, of in found.items()))
    fine = steps == 1 or untied
    as_described &= all((of < 1e-4) == fine for of in found.values()) and (fine or found["Jacobian"] > 0.2)
    if not fine:
        # The readout's 21 numbers come first, then the 24 weights and 6 biases of the layer that reads the input.
        weights, biases = jacobian[:, :, 21:45].unflatten(2, (HIDDEN, FEATURES)), jacobian[:, :, 45:51]
        last = torch.einsum("osh,sf->oshf", biases, x[:, -1])
        of_biases, of_last = off(biases, right[:, :, 45:51]), off(weights, last)
        print(f"the first layer's biases are {of_biases:.1%} off; its weights are {of_last:.1%} off biases times the last step's input")
        as_described &= of_biases < 1e-4 and of_last < 1e-4
sys.exit(not as_described)
PYTHON
