#!/usr/bin/env bash
# aihwkit-lightning 2.1.0, torch 2.13.0: in eval mode an analog layer has no noise at all.
#
# The documentation of TorchInferenceRPUConfig.forward, which holds out_noise, says: "This forward pass is applied equally in training
# and inference." The layer adds output noise and weight noise in training mode alone. After model.eval() its output is, number by
# number, that of a layer whose configuration has no noise. The converters (inp_res, out_res, out_bound) are applied in both modes.
#
# Seen: with out_noise 0.5 and weight noise 0.1, two passes in training mode differ; two passes in eval mode are equal, and equal to
# those of a layer without noise.
#
# Why it matters: the accuracy that is measured behind model.eval(), as everybody does, is that of a chip without noise. To measure with
# noise, call the model in training mode; its input ranges move for the first init_from_data passes there, without gradients too.
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
from aihwkit_lightning.nn import AnalogLinear
from aihwkit_lightning.simulator.configs import TorchInferenceRPUConfig, WeightNoiseInjectionType


def layer(out_noise, weight_noise):
    config = TorchInferenceRPUConfig()
    config.pre_post.input_range.enable = True
    config.pre_post.input_range.init_from_data = 0
    config.forward.out_noise = out_noise
    if weight_noise:
        config.modifier.noise_type = WeightNoiseInjectionType.ADD_NORMAL_PER_CHANNEL
        config.modifier.std_dev = weight_noise
    torch.manual_seed(0)
    return AnalogLinear(20, 10, rpu_config=config)


x = torch.randn(8, 20, generator=torch.Generator().manual_seed(1))
noisy, ideal = layer(0.5, 0.1), layer(0.0, 0.0)
with torch.no_grad():
    training = (noisy(x) - noisy(x)).abs().max().item()
    noisy.eval(), ideal.eval()
    evaluating = (noisy(x) - noisy(x)).abs().max().item()
    beside_ideal = (noisy(x) - ideal(x)).abs().max().item()
    counted = layer(0.0, 0.0)
    counted.rpu_config.pre_post.input_range.init_from_data = 3
    before = counted.input_range.item()
    counted.train()(x)
    moved = counted.input_range.item() - before
print(f"largest difference of two passes: {training:.3f} in training mode, {evaluating} in eval mode")
print(f"largest difference from a layer without noise, in eval mode: {beside_ideal}")
print(f"one pass in training mode under no_grad moves the input range (a parameter) by {moved:.3f}")
sys.exit(not (training > 0.1 and evaluating == 0 and beside_ideal == 0 and moved != 0))
PYTHON
