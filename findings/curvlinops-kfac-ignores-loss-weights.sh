#!/usr/bin/env bash
# curvlinops 3.0.1, torch 2.13.0: KFAC leaves out weight, pos_weight and ignore_index of the loss that it is given.
#
# The documentation of KFACLinearOperator: TYPE2 uses "the exact Hessian of the loss w.r.t. the model outputs", and CrossEntropyLoss and
# BCEWithLogitsLoss are supported. Its Hessian is that of the loss without options; MC draws labels without them too, and then weighs
# the gradients, so that a weight enters squared. BackPACK, by the same authors, refuses such losses; here nothing is raised or warned of.
#
# Seen: for one layer and one datum, where KFAC is the exact Gauss-Newton matrix, it is so without options (MC: to 2 or 4%). With a class
# weight of 4 it is a quarter of it (MC: 110% off), with pos_weight 5 it is 79% off (MC: 249%). Four more rows with the label -100, which
# the loss leaves out, double its trace. GGNLinearOperator is exact everywhere. EFLinearOperator averages over all eight rows where the
# loss averages over four, and is twice what its documentation defines.
#
# Why it matters: losses of rare classes, padded sequences and half-labelled data have these options. Whoever preconditions updates with
# KFAC, or measures how near a rule without backpropagation comes to the natural gradient, does so for another loss. Use
# GGNLinearOperator, or KFAC on data in which rows are repeated and left out instead.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 scipy==1.17.1 tqdm==4.70.1 einops==0.8.2 \
        einconv==0.1.0 linear-operator==0.6.1 opt-einsum==3.4.0 &&
    # BackPACK is asked for, but used for no more than examples; it would bring torchvision.
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps curvlinops-for-pytorch==3.0.1 backpack-for-pytorch==1.7.1 \
        unfoldNd==0.2.3 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from curvlinops import EFLinearOperator, FisherType, GGNLinearOperator, KFACLinearOperator
from torch.nn import BCEWithLogitsLoss, CrossEntropyLoss

torch.set_default_dtype(torch.double)
torch.manual_seed(0)
FEATURES, CLASSES = 4, 3
layer = torch.nn.Linear(FEATURES, CLASSES, bias=False)
one = torch.eye(FEATURES * CLASSES)


def by_hand(loss, x, y):
    """The Gauss-Newton matrix, from the Jacobian of the outputs and the Hessian of the loss."""
    weight = layer.weight.detach()
    jacobian = torch.func.jacrev(lambda w: x @ w.T)(weight).reshape(-1, one.shape[0])
    outputs = x @ weight.T
    hessian = torch.func.hessian(lambda o: loss(o, y))(outputs).reshape(outputs.numel(), outputs.numel())
    return jacobian.T @ hessian @ jacobian


def dense(operator, loss, x, y, **options):
    return operator(layer, loss, list(layer.parameters()), [(x, y)], **options) @ one


def off(matrix, right):
    return ((matrix - right).norm() / right.norm()).item()


label, labels = torch.tensor([1]), torch.tensor([[1.0, 0.0, 1.0]])
x = torch.randn(1, FEATURES)
as_described = True
for name, loss, y, plain in (
    ("cross entropy", CrossEntropyLoss(reduction="sum"), label, True),
    ("cross entropy, weight of the label 4", CrossEntropyLoss(reduction="sum", weight=torch.tensor([0.5, 4.0, 2.0])), label, False),
    ("binary cross entropy", BCEWithLogitsLoss(reduction="sum"), labels, True),
    ("binary cross entropy, weight 4", BCEWithLogitsLoss(reduction="sum", weight=torch.tensor([4.0])), labels, False),
    ("binary cross entropy, pos_weight 5", BCEWithLogitsLoss(reduction="sum", pos_weight=torch.tensor([5.0])), labels, False),
):
    right = by_hand(loss, x, y)
    found = {
        "GGN": dense(GGNLinearOperator, loss, x, y),
        "KFAC": dense(KFACLinearOperator, loss, x, y, fisher_type=FisherType.TYPE2),
        "KFAC by MC": dense(KFACLinearOperator, loss, x, y, fisher_type=FisherType.MC, mc_samples=4000),
    }
    print(f"{name}: " + ", ".join(f"{which} is {off(of, right):.1%} off" for which, of in found.items()))
    without = by_hand(type(loss)(reduction="sum"), x, y)
    as_described &= off(found["GGN"], right) < 1e-9 and off(found["KFAC"], without) < 1e-9
    as_described &= (off(right, without) < 1e-9) == plain and (off(found["KFAC by MC"], right) < 0.1) == plain

x, y = torch.randn(8, FEATURES), torch.tensor([0, 1, 2, 0, -100, -100, -100, -100])
loss, mean = CrossEntropyLoss(reduction="sum"), CrossEntropyLoss()
ratios = {}
for name, operator, options in (("GGN", GGNLinearOperator, {}), ("KFAC", KFACLinearOperator, {"fisher_type": FisherType.TYPE2})):
    ratios[name] = (dense(operator, loss, x, y, **options).trace() / dense(operator, loss, x[:4], y[:4], **options).trace()).item()
print("four rows of label -100 more: the trace is " + ", ".join(f"{of:.2f} times as large ({name})" for name, of in ratios.items()))
gradients = torch.stack([torch.autograd.grad(mean(layer(x[i : i + 1]), y[i : i + 1]), layer.weight)[0].flatten() for i in range(4)])
times = dense(EFLinearOperator, mean, x, y) / (gradients.T @ gradients / 4)
print(f"EFLinearOperator of the mean: {times.min().item():.3f} to {times.max().item():.3f} times the mean over the four rows of the loss")
as_described &= abs(ratios["GGN"] - 1) < 1e-9 and ratios["KFAC"] > 1.3 and bool((times - 2).abs().max() < 1e-6)
sys.exit(not as_described)
PYTHON
