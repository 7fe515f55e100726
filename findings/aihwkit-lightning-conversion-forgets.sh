#!/usr/bin/env bash
# aihwkit-lightning 2.1.0, torch 2.13.0: conversion to analog layers unfreezes weights, unties them, and leaves evaluation mode.
#
# convert_to_analog makes every linear and convolution layer anew and copies the values of its weights. What else a layer had is lost
# without a word: requires_grad=False becomes True, eval() becomes train(), and two layers that share one weight get one each.
#
# Seen: a frozen layer has trainable weights after the conversion, a network in evaluation mode is in training mode, and a tied weight
# is two parameters, which one step of SGD makes different.
#
# Why it matters: who fine-tunes a converted network on a frozen trunk trains the trunk too, and a language model whose embedding and
# head were tied has twice the weights. Freeze, tie and set the mode after the conversion. (Hooks are lost as well: attach a rule then.)
#
# Exit code 0: as described. 1: the behaviour has changed. 2: the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 aihwkit-lightning==2.1.0 || exit 2

"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from aihwkit_lightning.nn.conversion import convert_to_analog
from aihwkit_lightning.simulator.configs import TorchInferenceRPUConfig

config = TorchInferenceRPUConfig()

frozen = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
frozen[0].requires_grad_(False)
frozen.eval()
analog = convert_to_analog(frozen, config)
trainable = analog[0].weight.requires_grad
training = analog.training

tied = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Tanh(), torch.nn.Linear(4, 4, bias=False))
tied[2].weight = tied[0].weight
analog = convert_to_analog(tied, config)
count = len(list(tied.parameters())), sum(name.endswith("weight") for name, _ in analog.named_parameters())
equal_before = torch.equal(analog[0].weight, analog[2].weight)
analog(torch.randn(8, 4)).square().sum().backward()
torch.optim.SGD(analog.parameters(), lr=0.1).step()
equal_after = torch.equal(analog[0].weight, analog[2].weight)
print(f"frozen weights are trainable after the conversion: {trainable}; the network is in training mode: {training}")
print(f"weights of the tied network: {count[0]} before, {count[1]} after; equal after one step: {equal_after}")
sys.exit(not (trainable and training and count == (1, 2) and equal_before and not equal_after))
PYTHON
