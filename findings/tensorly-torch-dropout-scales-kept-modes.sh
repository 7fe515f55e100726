#!/usr/bin/env bash
# tensorly-torch 0.5.0, torch 2.13.0: tensor dropout makes a tensor larger by 1 / (1 - p) for every mode that it leaves alone.
#
# The documentation: "only apply dropout to modes with dimension larger than `min_dim`", and, "if a tensor if of shape (32, 32, 3, 3) and
# min_dim = 4 then dropout will not be applied to the last two modes". These modes keep all of their components, and yet the tensor is
# multiplied in training by 1 / (1 - p) for each of them, as if they were dropped too. In evaluation it is not. There is no warning.
#
# Seen: with p = 0.5 and the default min_dim = 3, a Tucker tensor of rank (16, 16, 3, 3) is in the mean of many draws 4 times what it is in
# evaluation, one of rank (16, 16, 3, 3, 3) 8 times, and a tensor train of rank (1, 3, 16, 3, 1) 4 times. Where all ranks are larger than
# min_dim, the mean is the tensor. A 3 by 3 convolution of rank 16 has outputs 4 times as large in training as in evaluation; with
# p = 0.1 it is 1.23 times.
#
# Why it matters: the spatial modes of kernels are always that small, so that the usual factorized convolution, made to save memory, is
# trained at one scale and measured at another, also by rules that scale their updates by weights or activations. Without normalization
# behind it, the network that is evaluated is not the one that has learned. Give min_dim=0, or divide by the factor in training.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# tensorly asks for no packaging, but uses it.
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 scipy==1.17.1 tensorly==0.10.0 \
        tensorly-torch==0.5.0 packaging==25.0 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import math
import sys
import warnings

import torch
from tltorch import FactorizedConv, FactorizedTensor
from tltorch.tensor_hooks import tensor_dropout

warnings.simplefilter("ignore")
torch.manual_seed(0)
DRAWS = 2000


@torch.no_grad()
def times(draw, right):
    """The mean of many draws, in units of what it should be."""
    mean = sum(draw() for _ in range(DRAWS)) / DRAWS
    return ((mean * right).sum() / right.square().sum()).item()


as_described = True
for kind, shape, rank, p, kept in (
    ("Tucker", (16, 16, 16, 16), (16, 16, 16, 16), 0.2, 0),
    ("Tucker", (16, 16, 3, 3), (16, 16, 3, 3), 0.5, 2),
    ("Tucker", (16, 16, 3, 3), (16, 16, 3, 3), 0.1, 2),
    ("Tucker", (16, 16, 3, 3, 3), (16, 16, 3, 3, 3), 0.5, 3),
    ("TT", (16, 16, 16, 16), (1, 16, 16, 16, 1), 0.2, 0),
    ("TT", (3, 16, 16, 3), (1, 3, 16, 3, 1), 0.5, 2),
):
    tensor = FactorizedTensor.new(shape, rank=rank, factorization=kind).normal_()
    right = tensor.to_tensor().detach()
    tensor_dropout(tensor, p)
    tensor.eval()
    same = torch.allclose(tensor().to_tensor(), right)
    tensor.train()
    found = times(lambda: tensor().to_tensor(), right)
    print(
        f"{kind} of rank {tuple(tensor.rank)}, p {p}, {kept} modes kept: in training {found:.2f} times the tensor, (1 - p)^-{kept} is"
        f" {(1 - p) ** -kept:.2f}; in evaluation the tensor itself: {same}"
    )
    as_described &= same and abs(math.log(found * (1 - p) ** kept)) < 0.15

plain = torch.nn.Conv2d(16, 16, 3, bias=False)
layer = FactorizedConv.from_conv(plain, rank=(16, 16, 3, 3), factorization="tucker", decompose_weights=False)
x = torch.randn(4, 16, 6, 6)
for p, scale in ((0.5, 4), (0.1, 1 / 0.9**2)):
    layer.eval()
    right = layer(x).detach()
    tensor_dropout(layer.weight, p)
    layer.train()
    found = times(lambda: layer(x), right)
    print(f"a convolution, p {p}: its outputs are in training {found:.2f} times those in evaluation")
    as_described &= abs(math.log(found / scale)) < 0.15
    layer.weight._forward_hooks.clear()
sys.exit(not as_described)
PYTHON
