#!/usr/bin/env bash
# bindsnet 0.3.4, torch 2.13.0: plasticity moves the weights of channels that never spike, in all but two-dimensional convolutions.
#
# The documentation calls PostPre "Simple STDP rule involving both pre- and post-synaptic spiking activity", and LocalConnection1D to
# LocalConnection3D support "multi-channel inputs". With more than one input channel the update of these, and that of Conv1dConnection
# and Conv3dConnection, is put into the weights in another order than the one that compute() reads them in: windows of one channel at
# many places are taken for windows of all channels at one place. The sizes fit, so that there is no error and no warning.
#
# Seen: with three input channels, of which the second never spikes, its weights move like the others, and the whole change is 50% to
# 104% off the spikes and traces of the pairs that compute() joins. In Conv2dConnection, and with one channel everywhere, the two are
# equal. It is so in PostPre, Hebbian and WeightDependentPostPre; in local connections also in MSTDP and MSTDPET.
#
# Why it matters: local plasticity is the only teacher of such a network, so that a second convolution (whose input has several
# channels), sound or video learns from pairs of neurons that no synapse connects. It still spikes and its weights still settle.
#
# bindsnet asks for torch 2.14 and for packages for games and plots. The script leaves those out and loads networks and rules alone;
# what it uses of torch is plain tensor operations.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps bindsnet==0.3.4 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import importlib.util
import sys
import types

import torch

package = types.ModuleType("bindsnet")  # In place of its __init__.py, which would load datasets, plots and games.
package.__path__ = importlib.util.find_spec("bindsnet").submodule_search_locations
sys.modules["bindsnet"] = package
from bindsnet.network import Network, nodes, topology  # noqa: E402, I001
from bindsnet.learning import MSTDP, MSTDPET, Hebbian, PostPre, WeightDependentPostPre  # noqa: E402

STEPS, SIDE, KERNEL, FILTERS = 30, 6, 3, 2


def build(kind, dimensions, channels, rule, nu):
    torch.manual_seed(0)
    source = nodes.Input(shape=(channels, *[SIDE] * dimensions), traces=True)
    target = nodes.LIFNodes(shape=(FILTERS, *[SIDE - KERNEL + 1] * dimensions), traces=True)
    sizes = (KERNEL, 1) if dimensions == 1 else ((KERNEL,) * dimensions, (1,) * dimensions)
    options = dict(kernel_size=sizes[0], stride=sizes[1], nu=nu, update_rule=rule, wmin=0.0, wmax=1.0)
    if kind == "Conv":
        connection = getattr(topology, f"Conv{dimensions}dConnection")(source, target, **options)
    else:
        connection = getattr(topology, f"LocalConnection{dimensions}D")(source, target, n_filters=FILTERS, b=torch.zeros(1), **options)
    connection.w.data.uniform_(0.4, 0.6)
    network = Network()
    network.add_layer(source, "X"), network.add_layer(target, "Y"), network.add_connection(connection, "X", "Y")
    spikes = (torch.rand(STEPS, 1, channels, *[SIDE] * dimensions) < 0.3).float()
    if channels > 1:
        spikes[:, :, 1] = 0
    return network, connection, spikes


def pairs(connection, before, after):
    """For every weight, the sum of products of the two neurons' values, over all places where compute() joins them by that weight."""
    weight = connection.w.detach().clone().requires_grad_()
    kept, connection.w = connection.w, torch.nn.Parameter(weight)
    total = (connection.compute(before.float()) * after.float()).sum()
    (gradient,) = torch.autograd.grad(total, connection.w)
    connection.w = kept
    return gradient


def off(kind, dimensions, channels):
    """How far the change of PostPre is off what compute() gives, and the share of a silent channel in it."""
    network, connection, spikes = build(kind, dimensions, channels, PostPre, (2e-4, 1e-3))
    begin, expected = connection.w.clone(), torch.zeros_like(connection.w)
    for spike in spikes:
        network.run({"X": spike[None]}, time=1)
        source, target = connection.source, connection.target
        expected += 1e-3 * pairs(connection, source.x, target.s) - 2e-4 * pairs(connection, source.s, target.x)
    moved = connection.w - begin
    return ((moved - expected).norm() / expected.norm()).item(), silent_share(kind, moved)


def silent_share(kind, moved):
    channel = 1 if kind == "Conv" else 0
    if moved.shape[channel] == 1:
        return 0.0
    return (moved.select(channel, 1).norm() / moved.norm()).item()


as_described = True
for kind in ("Conv", "Local"):
    for dimensions in (1, 2, 3):
        (one, _), (three, silent) = off(kind, dimensions, 1), off(kind, dimensions, 3)
        print(
            f"{kind} {dimensions}D, PostPre: {one:.1%} off with one channel, {three:.0%} with three;"
            f" the silent channel has {silent:.0%} of the change's length"
        )
        fine = kind == "Conv" and dimensions == 2
        as_described &= one < 1e-3 and ((three < 1e-3 and silent == 0) if fine else (three > 0.3 and silent > 0.3))

for rule in (Hebbian, WeightDependentPostPre, MSTDP, MSTDPET):
    shares = {}
    for kind in ("Conv", "Local"):
        for dimensions in (1, 2, 3):
            network, connection, spikes = build(kind, dimensions, 3, rule, (1e-4, 1e-4))
            begin = connection.w.clone()
            network.run({"X": spikes}, time=STEPS, reward=1.0)
            shares[kind, dimensions] = silent_share(kind, connection.w - begin)
    print(f"{rule.__name__}: the silent channel's share is " + ", ".join(f"{of:.0%} ({a} {b}D)" for (a, b), of in shares.items()))
    fine = {("Conv", 2)} if rule in (Hebbian, WeightDependentPostPre) else {("Conv", 1), ("Conv", 2), ("Conv", 3)}
    as_described &= all((of == 0) if place in fine else (of > 0.3) for place, of in shares.items())
sys.exit(not as_described)
PYTHON
