#!/usr/bin/env bash
# nngeometry 0.4, torch 2.13.0: the Fisher information matrix of a classifier that is sure of a few samples is nan.
#
# The documentation of FIM: "computing the Fisher Information Matrix using closed form expressions", with "classif_logits" when "the NN
# returns logits to be used in a softmax model"; the README takes it after training, to keep a network from forgetting. The closed form
# takes one minus the sum of the first classes' probabilities, divides by it and takes a root. Rounded, it is zero, or less than zero.
#
# Seen: a small network, trained to 100% on ten separate clusters, has a matrix whose trace is nan, dense, diagonal or KFAC, with no
# error or warning. 14 of its 200 samples do it, each alone, at probabilities of 0.9994 and more; without these the matrix is right.
# Before training it is right. By hand, from probabilities and Jacobian, it is finite, and so is FIM_MonteCarlo. Of random logits of ten
# classes with one ahead of the others by 14, 6% are nan and others up to 11% off; by 17, 58% are nan and others up to 75% off.
#
# Why it matters: penalties against forgetting, natural gradients and pruning take this matrix of networks that have learned. One sure
# sample in the data makes the penalty, and with the next step all weights, nan. Networks are sure whatever rule has trained them. Use
# FIM_MonteCarlo. (A network in double precision raises an error.)
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Without its dependencies: torchvision is asked for, but not used.
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps nngeometry==0.4 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import copy
import sys

import torch
from nngeometry.metrics import FIM, FIM_MonteCarlo
from nngeometry.object import PMatDense, PMatDiag, PMatKFAC

torch.manual_seed(0)
CLASSES, SAMPLES = 10, 200
labels = torch.arange(SAMPLES) % CLASSES
x = 4 * torch.randn(CLASSES, 8)[labels] + torch.randn(SAMPLES, 8)
network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, CLASSES))


def fim(model, rows, representation=PMatDense, helper=FIM):
    return helper(model, (rows, torch.zeros(len(rows))), representation, variant="classif_logits")


def by_hand(model, rows):
    """The mean over the samples of J^T (diag p - p p^T) J, in double precision."""
    model = copy.deepcopy(model).double()
    total = 0
    for row in rows.double():
        outputs = model(row)
        jacobian = torch.stack(
            [torch.cat([of.flatten() for of in torch.autograd.grad(out, list(model.parameters()), retain_graph=True)]) for out in outputs]
        )
        p = outputs.detach().softmax(0)
        total = total + jacobian.T @ (p.diag() - p.outer(p)) @ jacobian
    return total / len(rows)


def off(found, right):
    return ((found - right).norm() / right.norm()).item()


def is_nan(matrix):
    return matrix.trace().isnan().item()


before = off(fim(network, x).to_torch(), by_hand(network, x))
optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
for _ in range(1000):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(network(x), labels).backward()
    optimizer.step()
with torch.no_grad():
    outputs = network(x)
accuracy = (outputs.argmax(1) == labels).float().mean().item()
nan = {of.__name__: is_nan(fim(network, x, of)) for of in (PMatDense, PMatDiag, PMatKFAC)}
sampled = is_nan(fim(network, x, PMatDiag, FIM_MonteCarlo))
right = by_hand(network, x)
print(f"before training: {before:.1e} off; after it, {accuracy:.0%} right, nan is {nan}, of FIM_MonteCarlo {sampled}")
print(f"by hand: trace {right.trace().item():.2e}, largest number {right.abs().max().item():.2e}")

alone = torch.tensor([is_nan(fim(network, row[None])) for row in x])
kept = x[~alone]
rest = off(fim(network, kept).to_torch(), by_hand(network, kept))
sure = outputs.softmax(1).max(1).values
print(f"alone {int(alone.sum())} of {SAMPLES} samples are nan, with probabilities from {sure[alone].min().item():.7f}")
print(f"the matrix of the others is {rest:.1e} off")
as_described = before < 1e-4 and accuracy == 1 and all(nan.values()) and not sampled and bool(right.isfinite().all())
as_described &= 0 < int(alone.sum()) < SAMPLES / 4 and rest < 0.05

reader = torch.nn.Linear(CLASSES, CLASSES, bias=False)
torch.nn.init.eye_(reader.weight)
for lead in (8, 12, 14, 17):
    errors = []
    for _ in range(50):
        logits = torch.randn(1, CLASSES)
        logits[0, torch.randint(CLASSES, ())] = logits.max() + lead
        errors.append(off(fim(reader, logits).to_torch(), by_hand(reader, logits)))
    errors = torch.tensor(errors)
    known = errors[~errors.isnan()]
    print(f"random logits, lead {lead}: {len(errors) - len(known)} of {len(errors)} nan, the others up to {known.max().item():.2g} off")
    as_described &= lead != 8 or (len(known) == len(errors) and known.max().item() < 0.01)
    as_described &= lead != 17 or len(known) < len(errors)
sys.exit(not as_described)
PYTHON
