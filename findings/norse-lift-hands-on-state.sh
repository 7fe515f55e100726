#!/usr/bin/env bash
# norse 1.1.0, torch 2.13.0: of two Lift(LIFCell()) in a row, the second begins with the last state of the first.
#
# The documentation of Lift.forward says: "If the input is a tuple of two tensors, the second tuple entry will be ignored." It is not
# ignored where the module has states: Lift around a cell returns a tuple of spikes and state, and the next Lift takes this state as
# its own. Lift around a module without states, such as torch.nn.Linear, does drop it.
#
# Seen: the second of two equal layers spikes 72 times in torch.nn.Sequential and in SequentialState, and 60 times if it is called by
# hand with the spikes of the first. For an input of zeros it does not spike; with the first layer's state in the tuple it does. Its
# first output has a gradient for the last input.
#
# Why it matters: the second layer knows the end of the sequence before it sees its beginning. A leaky readout behind a spiking layer,
# Lift(LICell()), has wrong numbers without an error. Use LIF() and LI(), which take a sequence by themselves, in SequentialState, or
# hand on the spikes alone.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 norse==1.1.0 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from norse.torch import LIFCell, LIFParameters, Lift, SequentialState

x = torch.full((20, 1, 4), 0.9)
silence = torch.zeros(20, 1, 4)


def layer():
    return Lift(LIFCell(LIFParameters(v_th=torch.tensor(0.3), alpha=torch.tensor(1.0))))


first, second = layer(), layer()
with torch.no_grad():
    spikes, state = first(x)
    by_hand, _ = second(spikes)
    found = {
        "torch.nn.Sequential": torch.nn.Sequential(first, second)(x)[0],
        "SequentialState": SequentialState(first, second)(x)[0][0],
    }
    quiet, _ = second(silence)
    not_quiet, _ = second((silence, state))
print(f"spikes of the second layer, called by hand: {by_hand.sum():.0f}")
for name, chained in found.items():
    print(f"spikes of the second layer in {name}: {chained.sum():.0f}")
print(f"its spikes for an input of zeros: {quiet.sum():.0f}; for zeros in a tuple with the first layer's state: {not_quiet.sum():.0f}")

x.requires_grad_()
chained, _ = torch.nn.Sequential(first, second)(x)
(gradient,) = torch.autograd.grad(chained[0].sum(), x)
print(f"gradient of its first output for the last input: {gradient[-1].sum():.3f}")
wrong = all(chained.sum() != by_hand.sum() for chained in found.values())
sys.exit(not (wrong and quiet.sum() == 0 < not_quiet.sum() and gradient[-1].sum() > 0))
PYTHON
