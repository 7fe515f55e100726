#!/usr/bin/env bash
# snntorch 1.0.0, torch 2.13.0: a network in double precision or in bfloat16 gets spikes in float32.
#
# The surrogate gradient makes spikes by (potential > 0).float(), whatever the dtype of the potential.
#
# Seen: a Leaky neuron whose input, potential and buffers are float64 gives float64 potentials and float32 spikes. The next linear layer
# of the same network raises "mat1 and mat2 must have the same dtype". In bfloat16 the potentials are float32 as well.
#
# Why it matters: exactness tests are run in double precision, and a network of two layers of neurons does not run in it. Convert the
# spikes between the layers: spikes.to(x.dtype).
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
from snntorch import Leaky

as_described = True
for dtype, of_potentials in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
    first, neuron, second = (part.to(dtype) for part in (torch.nn.Linear(4, 4), Leaky(beta=0.9), torch.nn.Linear(4, 2)))
    spikes, potential = neuron(first(torch.ones(3, 4, dtype=dtype)), torch.zeros(3, 4, dtype=dtype))
    print(f"{dtype}: potentials are {potential.dtype}, spikes are {spikes.dtype}")
    try:
        second(spikes)
        as_described = False
    except RuntimeError as error:
        print(f"  the next layer: {error}")
        as_described &= "same dtype" in str(error)
    as_described &= potential.dtype == of_potentials and spikes.dtype == torch.float32
    second(spikes.to(dtype))
sys.exit(not as_described)
PYTHON
