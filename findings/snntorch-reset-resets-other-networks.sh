#!/usr/bin/env bash
# snntorch 1.0.0, torch 2.13.0: snntorch.utils.reset(network) resets the neurons of every other network, too.
#
# The documentation says of reset(net): "Check for the types of LIF neurons contained in net. Reset their hidden parameters to zero".
# It looks in net for types only, and then resets all neurons of these types that the program has made.
#
# Seen: two networks that share nothing run side by side; reset(first) sets the membrane potentials of the second to zero, and its next
# spikes are other ones than without the reset.
#
# Why it matters: a reference network that runs beside the one that is trained (a teacher, a running average, the same network by
# another learning rule) silently loses its state whenever the other begins a new sample. Keep the states outside of the neurons
# (init_hidden=False) in such programs.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 snntorch==1.0.0 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from snntorch import Leaky, utils


def network():
    return torch.nn.Sequential(torch.nn.Identity(), Leaky(beta=0.9, init_hidden=True))


def second_step(reset_the_other):
    """Return the potentials and spikes of a network in its second step; another one is or is not reset before it."""
    other, watched = network(), network()
    x = torch.full((2, 3), 0.8)
    other(x), watched(x)
    if reset_the_other:
        utils.reset(other)
    spikes = watched(x)
    return watched[1].mem.detach(), spikes


(undisturbed, spikes), (disturbed, none) = second_step(False), second_step(True)
print(f"second step of the watched network: potential {undisturbed[0, 0]:.2f}, spikes {spikes.sum():.0f}")
print(f"the same after reset() of the other network: potential {disturbed[0, 0]:.2f}, spikes {none.sum():.0f}")
sys.exit(not (spikes.sum() == 6 and none.sum() == 0 and not torch.equal(undisturbed, disturbed)))
PYTHON
