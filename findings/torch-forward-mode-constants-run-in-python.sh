#!/usr/bin/env bash
# torch 2.13.0, torch.autograd.forward_ad: a dual number times a constant runs some 500 functions of Python; times a dual number, none.
#
# The constant's tangent is a tensor of zeros without memory. What it adds is worked out operation by operation in Python, on tensors
# without data, to learn the shape of the result. The same holds for every operation that meets a constant: adding a number, a linear
# layer with a bias, layer normalization with its weights, dropout.
#
# Seen: for dual numbers of 3 x 4, x * x and a linear layer without a bias call no function of Python below the operation; x * 2.0, x + 1.0,
# x / 2, a linear layer with a bias, layer normalization and dropout call 200 to 570 each, every time. In the run below x * 2.0 takes many
# times as long as x * x, though it is half of the work.
#
# Why it matters: a forward-mode pass (forward gradients, GrAPE, FDFA) through small layers spends more time in this Python than in
# arithmetic. Written out it does not: take the dual number apart, and give value and tangent to the operation by themselves.
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import sys
import time

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F


def calls(work):
    """The Python functions that work calls, without itself."""
    names = []
    sys.setprofile(lambda frame, event, _: names.append(frame.f_code.co_name) if event == "call" else None)
    work()
    sys.setprofile(None)
    return len(names) - 1


def seconds(work, repeats=300):
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats


weight, bias = torch.randn(4, 4), torch.randn(4)
with torch.no_grad(), forward_ad.dual_level():
    x = forward_ad.make_dual(torch.randn(3, 4), torch.randn(3, 4))
    quick = {"x * x": lambda: x * x, "linear, no bias": lambda: F.linear(x, weight)}
    slow = {
        "x * 2.0": lambda: x * 2.0,
        "x + 1.0": lambda: x + 1.0,
        "x / 2": lambda: x / 2,
        "linear, bias": lambda: F.linear(x, weight, bias),
        "layer norm": lambda: F.layer_norm(x, [4], bias, bias),
        "dropout": lambda: F.dropout(x, 0.5, True),
    }
    found = {}
    for name, work in (quick | slow).items():
        work()  # the first call also imports
        found[name] = calls(work)
        print(f"{name}: {found[name]} calls of Python, {1e6 * seconds(work):.0f} microseconds")
as_described = all(found[name] < 10 for name in quick) and all(found[name] > 100 for name in slow)
sys.exit(not as_described)
PYTHON
