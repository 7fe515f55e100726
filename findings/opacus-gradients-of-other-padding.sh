#!/usr/bin/env bash
# opacus 1.6.0, torch 2.13.0: the gradients of single samples of a convolution with circular padding are those of zero padding.
#
# The documentation of GradSampleModule says: "Computes per-sample gradients using custom-written methods for each layer." The method of
# Conv1d, Conv2d and Conv3d pads the layer's input with zeros, whatever the layer's padding_mode is. There is no error and no warning.
#
# Seen: with padding_mode circular, reflect or replicate, grad_sample of the weight is, sample by sample, the gradient that zero padding
# would have. Its sum over the samples differs from the weight's own gradient by up to more than half of the largest number in it. With
# zeros it is equal, with force_functorch=True too, and so it is with a padding layer before a convolution that pads nothing.
#
# Why it matters: whoever clips, weighs or compares the gradients of single samples of such a network does it with those of another
# network. The bias has the right gradient, and the network may still learn, so that it is easily overlooked. Use
# GradSampleModule(network, force_functorch=True), or a layer of its own for the padding.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 opacus==1.6.0 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import sys
import warnings

import torch
from opacus import GradSampleModule

warnings.simplefilter("ignore")
MODES = "zeros", "circular", "reflect", "replicate"


def convolution(dimensions, mode):
    torch.manual_seed(0)
    return getattr(torch.nn, f"Conv{dimensions}d")(2, 3, 3, padding=1, padding_mode=mode).double()


def distance(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def compare(network, x, **options):
    """Return the gradients of single samples, the distance of their sum from the gradient, and the gradient of the output."""
    module = GradSampleModule(network, loss_reduction="sum", **options)
    output = module(x)
    output.square().sum().backward()
    weight = next(module.parameters())
    return weight.grad_sample, distance(weight.grad_sample.sum(0), weight.grad), 2 * output.detach()


def zero_padded(dimensions, x, error):
    """The gradient of each sample as zero padding has it, for a given gradient of the output."""
    layer = convolution(dimensions, "zeros")
    return torch.stack([torch.autograd.grad(layer(x[i : i + 1]), layer.weight, error[i : i + 1])[0] for i in range(len(x))])


as_described = True
for dimensions in (1, 2, 3):
    x = torch.randn(4, 2, *[5] * dimensions, generator=torch.Generator().manual_seed(1)).double()
    for mode in MODES:
        samples, difference, error = compare(convolution(dimensions, mode), x)
        from_zeros = distance(samples, zero_padded(dimensions, x, error))
        functorch = compare(convolution(dimensions, mode), x, force_functorch=True)[1]
        print(
            f"Conv{dimensions}d, {mode}: sum over the samples is {difference:.1%} off the gradient ({functorch:.1%} with"
            f" force_functorch); each sample is {from_zeros:.1%} off that of zero padding"
        )
        as_described &= from_zeros < 1e-9 and functorch < 1e-9 and (difference < 1e-9) == (mode == "zeros")
        as_described &= mode == "zeros" or difference > 0.05

x = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(1)).double()
apart = torch.nn.Sequential(torch.nn.CircularPad2d(1), torch.nn.Conv2d(2, 3, 3).double())
difference = compare(apart, x)[1]
print(f"CircularPad2d, then Conv2d without padding: {difference:.1%} off")
sys.exit(not (as_described and difference < 1e-9))
PYTHON
