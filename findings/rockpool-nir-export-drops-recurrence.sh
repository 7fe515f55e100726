#!/usr/bin/env bash
# rockpool 3.1.0, nir 1.0.4, nirtorch 2.0.2, torch 2.13.0: to_nir() leaves out the recurrent weights and the biases of spiking neurons.
#
# NIR is the format in which a trained spiking network goes to another library or to a chip. to_nir() of Rockpool makes one node of each
# layer, and refuses what it cannot express ("not yet supported for export"). A recurrent LIFTorch becomes a single CubaLIF node, as one
# without recurrence does: its matrix is in no node of the graph, and nothing is said. The bias of LIFTorch is written as a leak
# potential of 0. from_nir() of the same package does build recurrent layers, from graphs that have them.
#
# Seen: layers of 4 neurons, with a recurrent matrix, with a bias, and with neither. All three graphs have the same four nodes, whose numbers
# hold no entry of the matrix and no bias. Read back by from_nir(), the plain layer gives 3 % other spikes (its time step is 0.1 % shorter),
# the recurrent one 85 %, and the one with biases 24 %.
#
# Why it matters: whoever trains a recurrent spiking network, by whatever rule, and hands it to hardware by this format has another network
# there, and no message. Compare the outputs of what is read back with the network's before it leaves.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 rockpool==3.1.0 nir==1.0.4 \
        nirtorch==2.0.2 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import sys
import warnings

warnings.simplefilter("ignore")

import numpy as np
import torch
from rockpool.nn.combinators import Sequential
from rockpool.nn.modules import LIFTorch, LinearTorch
from rockpool.nn.modules.torch.nir import from_nir, to_nir

torch.manual_seed(0)
matrix, bias = 0.5 * torch.randn(4, 4), torch.tensor([0.011, 0.012, 0.013, 0.014])
layers = {"plain": {}, "recurrent": {"has_rec": True, "w_rec": matrix}, "with biases": {"bias": bias}}
x = 0.5 * torch.rand(2, 40, 3)


def numbers(graph):
    """Return all numbers that stand in a graph."""
    fields = [value for node in graph.nodes.values() for value in vars(node).values()]
    arrays = [np.asarray(value) for value in fields if isinstance(value, np.ndarray | torch.Tensor)]
    return np.concatenate([one.ravel().astype(float) for one in arrays if one.dtype.kind == "f"])


def is_in(values, graph):
    """Return whether one of these numbers stands in a graph."""
    return any(np.isclose(numbers(graph), float(value), rtol=1e-4, atol=0).any() for value in values.ravel())


kinds, others, kept = {}, {}, {}
for name, options in layers.items():
    net = Sequential(LinearTorch((3, 4), has_bias=True), LIFTorch(4, dt=1e-3, tau_mem=0.02, tau_syn=0.02, **options))
    graph = to_nir(net)
    kinds[name] = [type(node).__name__ for node in graph.nodes.values()]
    kept[name] = is_in(matrix, graph) or is_in(bias, graph)
    with torch.no_grad():
        net.reset_state()
        others[name] = (net(x)[0] != from_nir(graph)(x)[0]).float().mean().item()
    print(f"{name}: nodes {', '.join(kinds[name])}; {100 * others[name]:.1f} % other spikes when read back")
print(f"an entry of the matrix or of the bias stands in the graph: {kept}")
same = all(found == kinds["plain"] for found in kinds.values())
less = others["plain"] < 0.05 and others["recurrent"] > 0.5 and others["with biases"] > 0.15
sys.exit(not (same and less and not any(kept.values())))
PYTHON
