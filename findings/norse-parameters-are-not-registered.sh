#!/usr/bin/env bash
# norse 1.1.0, torch 2.13.0: an nn.Parameter in LIFParameters gets gradients, but is no parameter of the layer.
#
# The documentation of LIF says of p: "The neuron parameters as a torch Module, which allows the module to configure neuron parameters as
# optimizable." p is a tuple, LIFParameters, and no Module, so that torch does not find what is in it.
#
# Seen: a time constant that is an nn.Parameter gets a gradient, but is neither in parameters() nor in state_dict(). Five steps of
# torch.optim.SGD(net.parameters()) leave it as it was. After net.double() it is still float32. If it is given to the optimizer by hand,
# it learns.
#
# Why it matters: a network whose time constants are meant to learn keeps them, and a network whose time constants have learned (given by
# hand) is saved without them. Nothing warns of it. Register the parameter beside the layer: network.register_parameter(NAME, parameter).
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 norse==1.1.0 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import copy
import sys

import torch
from norse.torch import LIF, LIFParameters, SequentialState

torch.manual_seed(0)


def network():
    membrane = torch.nn.Parameter(torch.tensor(200.0))
    neurons = LIF(LIFParameters(tau_mem_inv=membrane, alpha=torch.tensor(1.0)))
    return SequentialState(torch.nn.Linear(2, 3), neurons, torch.nn.Linear(3, 1)), membrane


net, membrane = network()
start = membrane.item()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for _ in range(5):
    net(5 * torch.rand(10, 4, 2))[0].sum().backward()
    optimizer.step()
after = membrane.item()
listed = any(weight is membrane for weight in net.parameters())
saved = [name for name in net.state_dict() if not name.endswith(("weight", "bias"))]
kind = copy.deepcopy(net).double()[1].p.tau_mem_inv.dtype
print(f"in the layer as an nn.Parameter: {net[1].p.tau_mem_inv is membrane}, in parameters(): {listed}, in state_dict(): {bool(saved)}")
print(f"gradient of five steps {membrane.grad.item():.3g}; value {start} before, {after} after")
print(f"dtype after network.double(): {kind}")
torch.optim.SGD([*net.parameters(), membrane], lr=0.1).step()
stepped = membrane.item()
print(f"after a step of an optimizer that was given it by hand: {stepped:.1f}")
net.register_parameter("tau", membrane)
state = {**net.state_dict(), "tau": torch.tensor(5.0)}
net.load_state_dict(state)
loaded = net[1].p.tau_mem_inv.item()
print(f"registered beside the layer and loaded with the value 5: {loaded} in the layer")
unregistered = not listed and not saved and kind == torch.float32 and after == start
sys.exit(not (unregistered and membrane.grad != 0 and stepped != start and loaded == 5))
PYTHON
