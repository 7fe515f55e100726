#!/usr/bin/env bash
# norse 1.1.0, torch 2.13.0: a deep copy of a recurrent layer without self-connections learns them; a frozen recurrent matrix is unfrozen.
#
# The documentation says of autapses: "Allow self-connections in the recurrence? Defaults to False." The layer sets the diagonal of the
# recurrent matrix to zero once, and then keeps it by a hook on the matrix's gradient. copy.deepcopy does not copy hooks of
# parameters. Together with the hook, the layer sets requires_grad=True on the matrix, also if it was given with requires_grad=False.
#
# Seen: after 20 steps of SGD the largest self-connection is 0 in a LIFRecurrent layer and 0.0078 in a deep copy of it, whose autapses is
# still False. A given matrix with requires_grad=False has requires_grad=True in the layer, and training moves its weights by 0.05. With
# autapses=True it stays frozen.
#
# Why it matters: copies are usual (one start for several rules, a teacher), and the copy is another model than it says it is. A
# reservoir with fixed recurrent weights learns them. Freeze the matrix again after making the layer; for a copy, register a hook that
# sets the diagonal of the gradient to zero.
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
from norse.torch import LIFParameters, LIFRecurrent


def layer(**options):
    torch.manual_seed(0)
    return LIFRecurrent(2, 5, p=LIFParameters(alpha=torch.tensor(1.0)), dt=0.01, **options)


def train(of):
    torch.manual_seed(1)
    optimizer = torch.optim.SGD([weight for weight in of.parameters() if weight.requires_grad], lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        spikes, _ = of(3 * torch.rand(12, 4, 2))
        (spikes.mean() - 0.5).square().backward()
        optimizer.step()
    return of.recurrent_weights.diagonal().abs().max().item()


original = layer()
copied = copy.deepcopy(original)
diagonal = {"original": train(original), "deep copy": train(copied)}
for name, largest in diagonal.items():
    print(f"{name}: autapses=False, largest self-connection after 20 steps {largest:.4f}")

before = torch.full((5, 5), 0.2)
frozen = torch.nn.Parameter(before.clone(), requires_grad=False)
reservoir = layer(recurrent_weights=frozen)
train(reservoir)
moved = (frozen.detach() - before).fill_diagonal_(0).abs().max().item()
another = torch.nn.Parameter(before.clone(), requires_grad=False)
kept = layer(recurrent_weights=another, autapses=True).recurrent_weights.requires_grad
print(f"requires_grad of a matrix that was given frozen: {frozen.requires_grad} in the layer; training moves its weights by {moved:.4f}")
print(f"the same with autapses=True: {kept}")
sys.exit(not (diagonal["original"] == 0 < diagonal["deep copy"] and frozen.requires_grad and moved > 0 and not kept))
PYTHON
