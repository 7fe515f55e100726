#!/usr/bin/env bash
# snntorch 1.0.0, torch 2.13.0: a deleted network's neurons and weights stay in memory.
#
# Every neuron that is made is appended to the list SpikingNeuron.instances, for the class methods that reset or detach all neurons.
# The list belongs to the class and nothing takes a neuron out. After a forward pass the neuron holds its membrane potential with its
# graph, and the graph holds the weights of the layers below. So a program that trains one network after the other keeps all of them.
#
# Seen: of three networks that were used, deleted and collected, three neurons and three weight matrices are still alive.
# snntorch.Leaky.init(), which is to empty the list, frees none: it sets a new list on Leaky; neurons register on SpikingNeuron.
# snntorch.SpikingNeuron.init() frees them, but stops reset_hidden() and detach_hidden() from finding live neurons too.
#
# Why it matters: a sweep or a comparison of learning rules trains many networks in one process, and its memory grows with each.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 snntorch==1.0.0 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import gc
import sys
import weakref

import snntorch
import torch
from snntorch import SpikingNeuron


def alive(references):
    gc.collect()
    return sum(reference() is not None for reference in references)


def train_and_drop():
    """Use a layer of neurons over five steps, and return weak references to the neuron and the weights below it."""
    layer, neuron = torch.nn.Linear(100, 100), snntorch.Leaky(beta=0.9)
    membrane, total = neuron.reset_mem(), 0
    for _ in range(5):
        spikes, membrane = neuron(layer(torch.randn(8, 100)), membrane)
        total = total + spikes
    total.sum().backward()
    return weakref.ref(neuron), weakref.ref(layer.weight)


pairs = [train_and_drop() for _ in range(3)]
neurons, weights = zip(*pairs)
found = {"deleted": (alive(neurons), alive(weights))}
snntorch.Leaky.init()
found["after Leaky.init()"] = (alive(neurons), alive(weights))
SpikingNeuron.init()
found["after SpikingNeuron.init()"] = (alive(neurons), alive(weights))
for when, counts in found.items():
    print(f"{when}: {counts[0]} of 3 neurons and {counts[1]} of 3 weight matrices are alive")
sys.exit(list(found.values()) != [(3, 3), (3, 3), (0, 0)])
PYTHON
