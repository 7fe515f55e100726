#!/usr/bin/env bash
# torchopt 0.7.3, torch 2.13.0: zero_order(method="forward") gives sigma² times the gradient, and more samples do not make it exacter.
#
# The documentation: the gradient of the smoothed function is E[f(theta + sigma z) z] / sigma, sigma is "for precision", num_samples is
# "how many times we want to conduct the sampling", and "forward" is forward finite differences: (f(theta + sigma z) - f(theta)) z / sigma.
# The code multiplies by sigma instead of dividing, and it takes from the second sample not f(theta) but the difference of the first one,
# from the third that of the second, and so on. There is no error and no warning. In naive and antithetic neither is so.
#
# Seen: for a function of 20 numbers with 1 sample and sigma 0.1, the estimate is 0.01 of what the formula gives with the same noise,
# with sigma 0.01 it is 0.0001. With the factor taken out, its error is 450% of the gradient with 1,000 samples and 253% with 16,000,
# near the root of 20 / 2, where it stays; with the same noise the formula's falls from 15% to 3%, as that of "antithetic" does. With
# sigma 1 and 1 sample, the defaults, the estimate is right.
#
# Why it matters: whoever trains by forward passes alone (evolution strategies, non-differentiable or analog layers) and sets sigma to
# 0.01, as the documentation's examples do, takes steps of a ten-thousandth, of which the larger part is a noise that no number of
# samples averages out, and will blame the method. Use "antithetic", which costs one pass more for each sample.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 torchopt==0.7.3 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torchopt.diff.zero_order import zero_order

torch.set_default_dtype(torch.double)
torch.manual_seed(0)
size = 20
slope, theta = torch.randn(size), torch.randn(size)


def f(x):
    return (slope * x).sum() + 0.1 * x.square().sum()


true = slope + 0.2 * theta  # Of f, and of f smoothed by noise.


def estimate(method, sigma, noise):
    """What the library gives when it draws these rows of noise."""
    rows = iter(noise)
    at = theta.clone().requires_grad_()
    wrapped = zero_order(lambda shape: next(rows), method=method, argnums=0, num_samples=len(noise), sigma=sigma)(f)
    return torch.autograd.grad(wrapped(at), at)[0]


def formula(sigma, noise):
    return torch.stack([(f(theta + sigma * z) - f(theta)) / sigma * z for z in noise]).mean(0)


def described(sigma, noise):
    """What the header says that the library does."""
    before, terms = f(theta), []
    for z in noise:
        before = f(theta + sigma * z) - before
        terms.append(before * sigma * z)
    return torch.stack(terms).mean(0)


def error(gradient):
    return ((gradient - true).norm() / true.norm()).item()


as_described = True
for sigma in (1.0, 0.1, 0.01):
    noise = torch.randn(1, size)
    ratio = estimate("forward", sigma, noise) / formula(sigma, noise)
    print(f"1 sample, sigma {sigma}: the estimate is {ratio.mean().item():.6f} of the formula's")
    as_described &= bool((ratio / sigma**2 - 1).abs().max() < 1e-9)

sigma, errors = 0.1, {}
for samples in (2, 1000, 16000):
    found = {"forward, divided by sigma²": [], "formula": [], "antithetic": []}
    for _ in range(6):
        noise = torch.randn(samples, size)
        given = estimate("forward", sigma, noise)
        as_described &= torch.allclose(given, described(sigma, noise), rtol=1e-9, atol=1e-12)
        found["forward, divided by sigma²"].append(error(given / sigma**2))
        found["formula"].append(error(formula(sigma, noise)))
        found["antithetic"].append(error(estimate("antithetic", sigma, noise)))
    errors[samples] = {name: torch.tensor(of).mean().item() for name, of in found.items()}
    print(f"{samples} samples: mean error " + ", ".join(f"{of:.0%} ({name})" for name, of in errors[samples].items()))
few, many = errors[1000], errors[16000]
falls = {name: few[name] / many[name] for name in few}
as_described &= falls["forward, divided by sigma²"] < 2 and falls["formula"] > 3 and falls["antithetic"] > 3
as_described &= many["forward, divided by sigma²"] > 2
sys.exit(not as_described)
PYTHON
