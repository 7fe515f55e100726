#!/usr/bin/env bash
# sinabs 3.1.3, torch 2.13.0: all IAF layers of all networks have one threshold in memory, and so have all LIF layers.
#
# The documentation says of spike_threshold: "By default set to 1.0." The default is one tensor, made when the class is defined, and
# each layer's parameter spike_threshold is a view of this tensor. IAF, LIF and LIFRecurrent have one tensor each.
#
# Seen: load_state_dict of thresholds 2 and 5 into the two layers of a network gives 5 and 5. Another network has 5 and 5 then, too, and
# so has every IAF layer that is made later. One step of an optimizer that has the threshold of one layer moves all of them. Deep
# copies and networks made by from_model have tensors of their own, and so have layers made with spike_threshold=torch.tensor(1.0).
#
# Why it matters: a checkpoint with thresholds per layer gives another network than the one that was saved, without an error, and
# loading it changes the networks beside it. Thresholds that learn are tied. Give each layer a tensor of its own.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 sinabs==3.1.3 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import copy
import sys

import torch
from sinabs.from_torch import from_model
from sinabs.layers import IAF, LIF, LIFRecurrent


def network(layer=IAF):
    return torch.nn.Sequential(torch.nn.Linear(2, 3), layer(), torch.nn.Linear(3, 3), layer())


def thresholds(net):
    return [net[place].spike_threshold.item() for place in (1, 3)]


def load(net):
    """Load thresholds of 2 and 5."""
    state = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict({**state, "1.spike_threshold": torch.tensor(2.0), "3.spike_threshold": torch.tensor(5.0)})


loaded, other, copied = network(), network(), copy.deepcopy(network())
print(f"before: thresholds {thresholds(loaded)} in one network, {thresholds(other)} in another")
load(loaded)
later = network()
print(f"thresholds 2 and 5 loaded into the one: {thresholds(loaded)}; the other: {thresholds(other)}; one made later: {thresholds(later)}")
print(f"a deep copy made before: {thresholds(copied)}")
kinds = LIF(tau_mem=10.0), LIFRecurrent(tau_mem=10.0, rec_connect=torch.nn.Linear(1, 1))
kinds = [layer.spike_threshold.item() for layer in kinds]
print(f"layers of the classes LIF and LIFRecurrent made later: {kinds}")
as_described = thresholds(loaded) == thresholds(other) == thresholds(later) == [5, 5] and thresholds(copied) == kinds == [1, 1]

analog = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 3), torch.nn.ReLU())
first, second = (from_model(analog, batch_size=1).spiking_model for _ in range(2))
load(first)
print(f"loaded into a network by from_model: {thresholds(first)}; the other: {thresholds(second)}")
as_described &= thresholds(first) == [2, 5] and thresholds(second) == [1, 1]

trained, other = network(), network()
threshold = trained[1].spike_threshold.requires_grad_()
threshold.grad = torch.tensor(-1.0)
torch.optim.SGD([threshold], lr=0.5).step()
stepped = thresholds(trained), thresholds(other)
print(f"one step of an optimizer that has the threshold of one layer: {stepped[0]}; the other network: {stepped[1]}")

own, other = (network(lambda: IAF(spike_threshold=torch.tensor(1.0))) for _ in range(2))
load(own)
print(f"with a tensor of its own for each layer: {thresholds(own)}; the other network: {thresholds(other)}")
as_described &= stepped == ([5.5] * 2, [5.5] * 2) and thresholds(own) == [2, 5] and thresholds(other) == [1, 1]
sys.exit(not as_described)
PYTHON
