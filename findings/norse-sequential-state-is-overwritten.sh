#!/usr/bin/env bash
# norse 1.1.0, torch 2.13.0: SequentialState writes the new states into the list of states that it was given.
#
# The documentation says that state is "Either a list of states for each module or None", and that the output is a tuple with a state
# list. The list that is returned is the one that was given. A single cell returns a new state and leaves the given one as it is.
#
# Seen: after net(x, state), the list state holds the new states. Two calls with the same input and the same list give different
# outputs; with list(state) each time, or with a single LIFCell, they are equal.
#
# Why it matters: whoever starts several runs from one state (a second input, a second learning rule, a finite difference, a state
# after warming up) begins the second where the first has ended. Nothing warns of it. Pass list(state).
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 norse==1.1.0 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import sys

import norse.torch as norse
import torch

torch.manual_seed(0)
net = norse.SequentialState(torch.nn.Linear(2, 3), norse.LIFCell(), torch.nn.Linear(3, 1), norse.LICell())
x = 20 * torch.rand(4, 2)


@torch.no_grad()
def distance(given, copy):
    """Run twice from the same state; return the distance of the outputs."""
    first, _ = net(x, copy(given))
    second, _ = net(x, copy(given))
    return (first - second).abs().max().item()


with torch.no_grad():
    _, state = net(x)
    kept = [None if of is None else of.v.clone() for of in state]
    _, returned = net(x, state)
    moved = (state[1].v - kept[1]).abs().max().item()
same = returned is state
print(f"the list that is returned is the list that was given: {same}; the potential in the given list moved by {moved:.3f}")

with torch.no_grad():
    _, state = net(x)
by_list, by_copy = distance(state, lambda given: given), distance(state, list)
cell = norse.LIFCell()
with torch.no_grad():
    _, of_cell = cell(x)
    by_cell = (cell(x, of_cell)[1].v - cell(x, of_cell)[1].v).abs().max().item()
print(f"two calls with one state: outputs differ by {by_list:.3f} with the list, by {by_copy:.3f} with a copy of the list each time")
print(f"two calls of a single LIFCell with one state: differ by {by_cell:.3f}")
sys.exit(not (same and moved > 0.01 and by_list > 0.01 and by_copy == by_cell == 0))
PYTHON
