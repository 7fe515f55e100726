#!/usr/bin/env bash
# spikingjelly 2.0.0, torch 2.13.0: all neurons of a class have one surrogate function, across all networks.
#
# The documentation calls surrogate_function "the function for calculating surrogate gradients of the heaviside step function in
# backward". Its default is one module, made when the class is defined, and every neuron without one of its own gets this module.
#
# Seen: setting alpha of the surrogate function in one network changes the gradient of another network from 63.5 to 19.1, and alpha of
# LIF neurons that are made later. set_spiking_mode(False) in one network makes the neurons of the others put out numbers like 0.44
# instead of spikes. With surrogate_function=surrogate.Sigmoid() for each neuron the networks are apart.
#
# Why it matters: a slope that changes during training, or one slope per layer, also acts on the reference network, the teacher and the
# next run in the same program; layers of one network cannot differ. Give every neuron a surrogate function of its own.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 spikingjelly==2.0.0 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from spikingjelly.activation_based import functional, surrogate
from spikingjelly.activation_based.neuron import IFNode, LIFNode, ParametricLIFNode

x = 9 * torch.rand(5, 4, generator=torch.Generator().manual_seed(0))


def network(**options):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), LIFNode(**options), torch.nn.Linear(6, 2))


def gradient(net):
    functional.reset_net(net)
    net.zero_grad()
    sum(net(x) for _ in range(3)).square().sum().backward()
    return net[0].weight.grad.norm().item()


def numbers(neuron):
    return sorted(set(neuron(torch.linspace(0, 3, 4)).tolist()))


def change(one, other):
    """Set the slope of one network's surrogate gradient; return the other's gradients before and after."""
    before = gradient(other)
    one[1].surrogate_function.alpha = 0.5
    return before, gradient(other)


one, other = network(), network()
before, after = change(one, other)
later = network()[1].surrogate_function.alpha
print(f"gradient of the watched network: {before:.3f}; after alpha of the other network was set to 0.5: {after:.3f}")
print(f"alpha of a neuron that is made later: {later}, of another class: {IFNode().surrogate_function.alpha}")
classes = {kind: kind().surrogate_function is kind().surrogate_function for kind in (IFNode, LIFNode, ParametricLIFNode)}
print(f"one object for all neurons of a class: {', '.join(kind.__name__ for kind, same in classes.items() if same)}")

spikes = numbers(LIFNode())
one[1].surrogate_function.set_spiking_mode(False)
soft = [round(number, 2) for number in numbers(LIFNode())]
one[1].surrogate_function.set_spiking_mode(True)
print(f"outputs of a new neuron: {spikes}; after set_spiking_mode(False) in the other network: {soft}")

one, other = (network(surrogate_function=surrogate.Sigmoid()) for _ in range(2))
own = change(one, other)
print(f"with surrogate_function=surrogate.Sigmoid() for each neuron: {own[0]:.3f} before, {own[1]:.3f} after")
shared = all(classes.values()) and after != before and later == 0.5 and IFNode().surrogate_function.alpha == 4
sys.exit(not (shared and spikes == [0, 1] != soft and own[0] == own[1]))
PYTHON
