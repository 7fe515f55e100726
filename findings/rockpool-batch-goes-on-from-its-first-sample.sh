#!/usr/bin/env bash
# rockpool 3.1.0, torch 2.13.0: after a batch, every sample goes on from the state in which the first sample ended.
#
# Modules of Rockpool keep their state between calls, so that a long recording can be given part by part. LIFTorch takes a batch of
# recordings, and its documentation says that states are replicated over the batch. They are when a call begins; when it ends, the states
# of the first sample alone are kept, and the next call gives them to all samples.
#
# Seen: five recordings of 40 steps in one call, and the same in two calls of 20. The first recording's spikes are equal, those of the
# other four are not. Each recording by itself in two calls has the spikes of the one call exactly. The order of the samples in the batch
# so changes what each of them gives.
#
# Why it matters: training in parts of recordings (truncated backpropagation in time, or a rule that learns in each step, which neuromorphic
# hardware asks for) carries one recording's state into all others, and nothing warns of it. Give one recording at a time, or all of it in
# one call with reset_state() before.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 rockpool==3.1.0 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import sys
import warnings

warnings.simplefilter("ignore")

import torch
from rockpool.nn.combinators import Sequential
from rockpool.nn.modules import LIFTorch, LinearTorch

torch.manual_seed(0)
net = Sequential(LinearTorch((3, 4)), LIFTorch(4, dt=1e-3, tau_mem=0.02, tau_syn=0.02))
recordings = torch.rand(5, 40, 3)


@torch.no_grad()
def spikes(x, parts):
    """Run recordings (samples, steps, channels) from rest in so many calls; return their spikes."""
    net.reset_state()
    return torch.cat([net(part)[0] for part in x.chunk(parts, dim=1)], dim=1)


def other(found):
    """The share of steps and neurons at which each recording's spikes are others than in one call."""
    return [round(share, 3) for share in (found != whole).float().mean((1, 2)).tolist()]


whole = spikes(recordings, 1)
alone = torch.cat([spikes(one, 2) for one in recordings.split(1)])
together = other(spikes(recordings, 2))
turned = other(spikes(recordings.flip(0), 2).flip(0))
print(f"spikes of each recording in one call: {whole.sum((1, 2)).int().tolist()}")
print(f"other spikes, each recording alone in two calls:  {other(alone)}")
print(f"other spikes, all in two calls:                   {together}")
print(f"the same, the batch in the opposite order:        {turned}")
as_described = not any(other(alone)) and together[0] == 0 < min(together[1:]) and turned[-1] == 0 < min(turned[:-1])
sys.exit(not as_described)
PYTHON
