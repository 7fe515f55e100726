#!/usr/bin/env bash
# sinabs 3.1.3, torch 2.13.0: sinabs.reset_states(network) leaves the states of recurrent layers as they are.
#
# The documentation says: "Helper function to recursively reset all states of spiking layers within the model." It goes down to modules
# without children, and resets those that have states. LIFRecurrent and IAFRecurrent have a child, the module of their connections, so
# that they are not reset themselves. A layer that is given itself, not in a network, is not reset either: only children are looked at.
#
# Seen: after reset_states, the potentials of an IAF layer are zero and those of a LIFRecurrent layer behind it are not; the same input
# gives other outputs than the first time. Network.reset_states() and the method reset_states() of each layer reset both.
#
# Why it matters: a recurrent network begins each sample with what is left of the one before, in training and in evaluation, and its
# results depend on the order of the samples. There is no error. Use Network.reset_states(), or call the method of each layer.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 sinabs==3.1.3 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from sinabs import reset_states
from sinabs.layers import IAF, LIFRecurrent
from sinabs.network import Network

torch.manual_seed(0)
x = 20 * torch.rand(2, 6, 3)


def network():
    torch.manual_seed(1)
    recurrent = LIFRecurrent(tau_mem=10.0, rec_connect=torch.nn.Linear(5, 5))
    return torch.nn.Sequential(torch.nn.Linear(3, 5), IAF(), torch.nn.Linear(5, 5), recurrent, torch.nn.Linear(5, 2))


def layer_by_layer(net):
    net[1].reset_states(), net[3].reset_states()


found = {}
for name, reset in (
    ("sinabs.reset_states(net)", reset_states),
    ("Network.reset_states()", lambda net: Network(None, net).reset_states()),
    ("layer.reset_states() of each", layer_by_layer),
):
    net = network()
    with torch.no_grad():
        first = net(x)
        reset(net)
        left = [net[place].v_mem.abs().max().item() for place in (1, 3)]
        moved = (net(x) - first).abs().max().item()
    potentials = f"largest potential {left[0]:.2f} in IAF, {left[1]:.2f} in LIFRecurrent"
    print(f"after {name}: {potentials}; outputs of the same input move by {moved:.2f}")
    found[name] = left[0] == 0, left[1] == 0, moved == 0

layer = IAF()
with torch.no_grad():
    layer(x)
    before = layer.v_mem.abs().max().item()
    reset_states(layer)
    after = layer.v_mem.abs().max().item()
print(f"sinabs.reset_states(layer) of an IAF layer itself: largest potential {before:.2f} before, {after:.2f} after")
sys.exit(list(found.values()) != [(True, False, False), (True,) * 3, (True,) * 3] or not before == after > 0)
PYTHON
