#!/usr/bin/env bash
# evox 1.4.0, torch 2.13.0: optimizer="adam" of the evolution strategies has no bias correction, so that steps are up to 6.5 times too
# large.
#
# OpenES, ARS, GuidedES, ESMC, PersistentES, NoiseReuseES and ASEBO take optimizer="adam" or None. Adam divides its two moving averages by 1 - beta^t, since both begin at zero. Here they are used as they are. The
# second one grows slower (0.999) than the first (0.9), so that their ratio is too large: by (1 - 0.9^t) / sqrt(1 - 0.999^t).
#
# Seen: OpenES on a sum of coordinates, with so many samples that the gradient is nearly constant, where a step of Adam has the size of
# the learning rate. The first step has 3.16 times this size, the tenth and the fourteenth 6.5, the hundredth 3.2. After 100 steps the
# center is 4.7 times as far as torch.optim.Adam takes it with the same gradients. Only after some thousand steps the two agree.
#
# Why it matters: most runs of evolution strategies have some hundred steps, all of them in this phase. A learning rate taken from a paper
# or from another library is too high, and comparing "adam" with None, or evox with others, compares step sizes. Start with a fifth of the
# learning rate.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 evox==1.4.0 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import math
import sys

import torch
from evox.algorithms import OpenES
from evox.core import Problem
from evox.workflows import StdWorkflow

DIMENSIONS, RATE, STDEV, SAMPLES, STEPS = 4, 0.01, 0.1, 4000, 100


class Sum(Problem):
    """The sum of the coordinates. It keeps the gradient that the strategy estimates from each population."""

    def __init__(self):
        super().__init__()
        self.gradients = []

    def evaluate(self, population):
        fitness = population.sum(-1)
        noise = (population - population.mean(0)) / STDEV  # Mirrored samples: their mean is the center.
        self.gradients.append(noise.T @ fitness / SAMPLES / STDEV)
        return fitness


torch.manual_seed(0)
problem = Sum()
workflow = StdWorkflow(OpenES(SAMPLES, torch.zeros(DIMENSIONS), RATE, STDEV, optimizer="adam"), problem)
centers = [torch.zeros(DIMENSIONS)]
for _ in range(STEPS):
    workflow.step()
    centers.append(workflow.algorithm.center.clone())

weights = torch.zeros(DIMENSIONS, requires_grad=True)
adam, right = torch.optim.Adam([weights], lr=RATE), [torch.zeros(DIMENSIONS)]
for gradient in problem.gradients:
    weights.grad = gradient.clone()
    adam.step()
    right.append(weights.detach().clone())

as_described = True
for step in (1, 2, 5, 10, 14, 30, 100):
    found = (centers[step - 1] - centers[step]).mean().item() / RATE
    torchs = (right[step - 1] - right[step]).mean().item() / RATE
    formula = (1 - 0.9**step) / math.sqrt(1 - 0.999**step)
    print(f"step {step}: {found:.2f} of the learning rate (by the formula {formula:.2f}), of torch {torchs:.2f}")
    as_described &= abs(found / formula - 1) < 0.05 and abs(torchs - 1) < 0.05
far = (centers[-1].mean() / right[-1].mean()).item()
print(f"after {STEPS} steps the center is {far:.1f} times as far as torch.optim.Adam takes it")
sys.exit(not (as_described and 4 < far < 6))
PYTHON
