#!/usr/bin/env bash
# spyx 1.0.0, jax 0.10.2: mse_spikerate compares a firing rate with a number of spikes, so that it always asks for more of them.
#
# The documentation: sparsity is "the percentage of the time you want the neurons to spike", and the loss is the "mean squared error of
# the mean spike rate". The mean over time is a rate between 0 and 1. The target is multiplied by the number of steps: 25 for a sparsity
# of 0.25 and 100 steps. No rate can reach this. There is no error and no warning.
#
# Seen: 2 classes, 100 steps, sparsity 0.25. An output whose right neuron spikes in 25 % of the steps and whose other is silent, which is
# what was asked for, has a loss of 306.3 instead of 0. A silent one has 312.5, and one that spikes in every step, four times too often,
# has 288.0, the lowest that there is. The gradient is the same for any rate to within 4 %: up.
#
# Why it matters: the output neurons are driven to fire at every step, whatever sparsity says, and the loss is larger the longer the
# sequence is, with the square of its length, so that a learning rate that fits one length does not fit another. Divide sparsity by the
# number of steps.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 optax==0.2.8 \
        spyx==1.0.0 || exit 2

JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
from spyx.fn import mse_spikerate

SPARSITY, CLASSES = 0.25, 2
label = jnp.array([0])


def output(steps, spikes):
    """Return an output whose right neuron spikes in the first of the steps, and whose other is silent."""
    return jnp.zeros((1, steps, CLASSES)).at[0, :spikes, 0].set(1.0)


def by_hand(steps, spikes, target):
    """Return the loss if the rate of the right neuron should be the target and that of the other 0."""
    return (spikes / steps - target) ** 2 / CLASSES


as_described = True
for steps in (100, 1000):
    loss = mse_spikerate(sparsity=SPARSITY)
    for spikes in (0, steps // 4, steps):
        found = float(loss(output(steps, spikes), label))
        asked, described = by_hand(steps, spikes, SPARSITY), by_hand(steps, spikes, SPARSITY * steps)
        by_rate = f"for a rate of {SPARSITY} {asked:.3f}, for {SPARSITY * steps:.0f} {described:.1f}"
        print(f"{steps} steps, {spikes} spikes: loss {found:.1f}; {by_rate}")
        as_described &= abs(found / described - 1) < 1e-4
    slopes = [float(jax.grad(loss)(output(steps, spikes), label)[0, 0, 0]) * steps for spikes in (0, steps // 4, steps)]
    print(f"{steps} steps: gradient by the rate of the right neuron: " + ", ".join(f"{slope:.1f}" for slope in slopes))
    as_described &= all(slope < 0 for slope in slopes) and abs(slopes[2] / slopes[0] - 1) < 0.05

# With the number of steps taken out it is the loss that the documentation describes.
loss = mse_spikerate(sparsity=SPARSITY / 100)
divided = [float(loss(output(100, spikes), label)) for spikes in (0, 25, 100)]
print("100 steps, sparsity divided by them: loss " + ", ".join(f"{of:.4f}" for of in divided))
as_described &= all(abs(of - by_hand(100, spikes, SPARSITY)) < 1e-6 for of, spikes in zip(divided, (0, 25, 100), strict=True))
sys.exit(not as_described)
PYTHON
