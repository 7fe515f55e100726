#!/usr/bin/env bash
# sinabs 3.1.3, torch 2.13.0: a batch of another size begins with mixed states of old samples, drawn at random.
#
# The documentation of StatefulLayer.handle_state_batch_size_mismatch, which LIF and IAF call by themselves, speaks of "randomly
# selecting" states. It does not say that the samples are drawn anew for each variable, nor that torch's generator is used.
#
# Seen: after a batch of 4 samples, each of which has a potential of twice its current, a batch of 3 or 6 has pairs of potential and
# current that no sample had. torch's generator has moved. With a batch of 4 nothing is drawn; LIFRecurrent begins with zeros instead.
#
# Why it matters: the last batch of an epoch is often smaller. Where states are meant to go on from batch to batch, that batch and the
# one behind it begin with states that cannot occur, and all later random numbers (order, dropout) are other ones. Call
# reset_states() before a batch of another size, or drop the last batch.
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
from sinabs.layers import LIF, LIFRecurrent

INPUT = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1)  # one step of four samples
OPTIONS = dict(tau_mem=1e9, tau_syn=1e9, norm_input=False, spike_threshold=torch.tensor(1e9))  # no leak, no spikes


@torch.no_grad()
def second_batch(layer, samples, reset=False):
    """Return the potential and the current of each sample of a batch of zeros behind the batch INPUT; did the generator move?"""
    layer(INPUT)
    if reset:
        layer.reset_states()
    before = torch.get_rng_state()
    layer(torch.zeros(samples, 1, 1))
    pairs = [(round(v), round(i)) for v, i in zip(layer.v_mem.flatten().tolist(), layer.i_syn.flatten().tolist())]
    return pairs, not torch.equal(before, torch.get_rng_state())


torch.manual_seed(0)
same, moved = second_batch(LIF(**OPTIONS), 4)
print(f"potential and current of a second batch of 4: {same}; torch's generator moved: {moved}")
as_described = same == [(2, 1), (4, 2), (6, 3), (8, 4)] and not moved
for samples in (3, 6):
    other, moved = second_batch(LIF(**OPTIONS), samples)
    strange = sum(pair not in same for pair in other)
    print(f"of a second batch of {samples}: {other}; generator moved: {moved}; pairs that no sample had: {strange}")
    as_described &= moved and not set(other) <= set(same) and {i for _, i in other} <= {1, 2, 3, 4}

reset, _ = second_batch(LIF(**OPTIONS), 3, reset=True)
recurrent, _ = second_batch(LIFRecurrent(rec_connect=torch.nn.Linear(1, 1, bias=False), **OPTIONS), 3)
print(f"of a second batch of 3 after reset_states(): {reset}; of LIFRecurrent, without it: {recurrent}")
sys.exit(not (as_described and reset == recurrent == [(0, 0)] * 3))
PYTHON
