#!/usr/bin/env bash
# backpack-for-pytorch 1.7.1, torch 2.13.0: gradients of single samples of a convolution with padding="same" are wrong.
#
# The documentation of BatchGrad: "individual gradients for each sample in a minibatch". To get them, a convolution of the input with the
# gradient of the output is run, with the layer's own padding. With a number this is right. With the word "same" this convolution pads to
# its own length, so that it gives the wrong positions, of which the first few are kept. There is no error and no warning. BatchL2Grad
# goes another way.
#
# Seen: Conv1d and Conv2d, kernels of 3 and 5. With padding="same" the gradients of single samples are off by 113 % to 143 % of their
# size, their sum is not the gradient that autograd gives, and SumGradSquared is off by 59 % to 111 %. The norms of BatchL2Grad are right
# in one dimension, so that the two contradict each other; in two dimensions it refuses "same". With padding=1 or 2, the same layer,
# everything is right.
#
# Why it matters: "same" is how most people write a convolution that keeps the size. Clipping by sample, influence of samples, gradient
# noise and empirical Fisher matrices are then computed from vectors of the right shape and size that point elsewhere. Write
# padding=(kernel - 1) // 2, and compare the sum over samples with .grad once.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Without its dependencies: torchvision is asked for, but not used.
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 einops==0.8.2 packaging==26.4 &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps unfoldNd==0.2.3 backpack-for-pytorch==1.7.1 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import sys
import warnings

warnings.simplefilter("ignore")

import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad, BatchL2Grad, SumGradSquared

SAMPLES, CLASSES, SIZE = 6, 3, 8


def off(found, right):
    return ((found - right).norm() / right.norm()).item()


def measure(kind, kernel, padding):
    """Return how far the quantities of the convolution's weight are from those of one backward pass for each sample."""
    torch.manual_seed(0)
    dimensions = 1 if kind is torch.nn.Conv1d else 2
    convolution = kind(2, 3, kernel, padding=padding)
    network = torch.nn.Sequential(convolution, torch.nn.Sigmoid(), torch.nn.Flatten(), torch.nn.Linear(3 * SIZE**dimensions, CLASSES))
    x, label = torch.randn(SAMPLES, 2, *[SIZE] * dimensions), torch.randint(0, CLASSES, (SAMPLES,))
    single = []
    for sample in range(SAMPLES):
        loss = torch.nn.functional.cross_entropy(network(x[[sample]]), label[[sample]]) / SAMPLES
        single.append(torch.autograd.grad(loss, convolution.weight)[0])
    single = torch.stack(single)
    network, criterion = extend(network), extend(torch.nn.CrossEntropyLoss())
    quantities = [BatchGrad(), SumGradSquared()] + ([BatchL2Grad()] if dimensions == 1 else [])  # In two dimensions it refuses "same".
    with backpack(*quantities):
        criterion(network(x), label).backward()
    weight = convolution.weight
    found = {
        "BatchGrad": off(weight.grad_batch, single),
        "its sum": off(weight.grad_batch.sum(0), weight.grad),
        "SumGradSquared": off(weight.sum_grad_squared, single.square().sum(0)),
        ".grad": off(weight.grad, single.sum(0)),
    }
    if dimensions == 1:
        found["BatchL2Grad"] = off(weight.batch_l2, single.square().flatten(1).sum(1))
    return found


as_described = True
for kind in (torch.nn.Conv1d, torch.nn.Conv2d):
    for kernel in (3, 5):
        for padding in ((kernel - 1) // 2, "same"):
            found = measure(kind, kernel, padding)
            values = ", ".join(f"{name} {of:.1%} off" for name, of in found.items())
            print(f"{kind.__name__}, kernel {kernel}, padding {padding!r}: {values}")
            wrong = ("BatchGrad", "its sum", "SumGradSquared") if padding == "same" else ()
            as_described &= all(of > 0.3 if name in wrong else of < 1e-4 for name, of in found.items())
sys.exit(not as_described)
PYTHON
