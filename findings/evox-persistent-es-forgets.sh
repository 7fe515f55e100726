#!/usr/bin/env bash
# evox 1.4.0, torch 2.13.0: PersistentES is persistent in its first episode alone; after that it is truncated evolution strategies, with
# their bias.
#
# The method estimates the gradient through an unrolled computation of T steps, K at a time. Its idea is to multiply the loss of a part by
# the sum of all perturbations since the computation began. The sum is set back when the T steps are over. The counter of the steps is not
# set back: the code stores it before it takes the 0. So it goes on to T + K, T + 2 K, ..., which all are at least T, and the sum is set
# back after every step.
#
# Seen: T = 30 and K = 10. The counter goes 10, 20, 30, 40, ..., 90 instead of 10, 20, 0, 10, ... The sum holds 1, 2, 0, 0, 0, ...
# perturbations instead of 1, 2, 0, 1, 2, 0, ... In a toy computation whose weight acts on all later parts, the gradients of the three
# parts are 1, 2 and 3. The steps of the first episode follow them. Those of the 40 episodes after it follow 1, 1 and 1, the gradients of
# parts that know nothing of each other.
#
# Why it matters: the method is chosen because truncated strategies are biased: they do not see that a weight acts later. This is what it
# does after the first T / K of thousands of steps, and learning curves do not tell. NoiseReuseES of the same package sets its counter
# back.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 evox==1.4.0 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from evox.algorithms import NoiseReuseES, PersistentES
from evox.core import Problem
from evox.workflows import StdWorkflow

T, K, SAMPLES, SIGMA, RATE, EPISODES = 30, 10, 20_000, 0.1, 1e-6, 41
PARTS = T // K


class Unrolled(Problem):
    """A state that sums the weights of its parts up; the loss of a part is the state, of which the part's own weight is one term.

    The gradient of the loss of part 1, 2 and 3 is 1, 2 and 3 times that of a part's own weight: the weight acts on all later parts.
    """

    def __init__(self):
        super().__init__()
        self.calls, self.state = 0, 0.0

    def evaluate(self, population):
        if self.calls % PARTS == 0:
            self.state = torch.zeros(len(population))
        self.calls += 1
        self.state = self.state + population[:, 0]
        return self.state


torch.manual_seed(0)
workflow = StdWorkflow(PersistentES(SAMPLES, torch.zeros(1), lr=RATE, sigma=SIGMA, T=T, K=K), Unrolled())
counters, sums, gradients = [], [], []
for _ in range(PARTS * EPISODES):
    before = workflow.algorithm.center.clone()
    workflow.step()
    gradients.append((before - workflow.algorithm.center).item() / RATE)
    counters.append(int(workflow.algorithm.inner_step_counter))
    sums.append((workflow.algorithm.pert_accum.std() / SIGMA).item() ** 2)

per_part = torch.tensor(gradients).view(EPISODES, PARTS)
first, later = per_part[0], per_part[1:].mean(0)
print(f"counter: {counters[:9]}")
print("perturbations in the sum: " + ", ".join(f"{of:.1f}" for of in sums[:9]))
print("gradient in the parts of an episode, right: 1, 2, 3; first episode: " + ", ".join(f"{of:.2f}" for of in first), end="; ")
print("mean of the later ones: " + ", ".join(f"{of:.2f}" for of in later))

other = StdWorkflow(NoiseReuseES(SAMPLES, torch.zeros(1), lr=RATE, sigma=SIGMA, T=T, K=K), Unrolled())
reused = []
for _ in range(9):
    other.step()
    reused.append(int(other.algorithm.inner_step_counter))
print(f"counter of NoiseReuseES: {reused}")

as_described = counters[:9] == [10, 20, 30, 40, 50, 60, 70, 80, 90] and reused == [10, 20, 0] * 3
as_described &= all(abs(found - right) < 0.1 for found, right in zip(sums[:9], (1, 2, 0, 0, 0, 0, 0, 0, 0), strict=True))
as_described &= torch.allclose(first, torch.tensor([1.0, 2.0, 3.0]), atol=0.15) and torch.allclose(later, torch.ones(3), atol=0.05)
sys.exit(not as_described)
PYTHON
