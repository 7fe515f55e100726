"""Analog layers of aihwkit-lightning, with noise and 8-bit converters, by DFA and by FDFA.

python examples/analog.py
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree.lab.data import load

try:
    from aihwkit_lightning.nn.conversion import convert_to_analog
    from aihwkit_lightning.simulator.configs import TorchInferenceRPUConfig, WeightNoiseInjectionType
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: pip install 'bpfree[examples]'") from error

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--quick", action="store_true", help="half an epoch in place of three")
steps = 32 if parser.parse_args().quick else 3 * 63
data = load("digits")
x, y, test_x, test_y = data.train.x.flatten(1), data.train.y, data.evaluation.x.flatten(1), data.evaluation.y

chip = TorchInferenceRPUConfig()
inputs = chip.pre_post.input_range  # a converter clips its inputs; tanh keeps those of hidden layers in its range
inputs.enable, inputs.learn_input_range, inputs.init_value, inputs.init_from_data = True, False, 1.0, 0
chip.forward.inp_res = chip.forward.out_res = 2**8 - 2  # 8 bits
chip.forward.out_bound, chip.forward.out_noise = 40.0, 0.1
chip.modifier.noise_type, chip.modifier.std_dev = WeightNoiseInjectionType.ADD_NORMAL_PER_CHANNEL, 0.1

for rule in (bpfree.BP(), bpfree.FDFA(), bpfree.DFA(), bpfree.Shallow()):
    torch.manual_seed(0)
    hidden = [part for width in (784, 256) for part in (nn.Linear(width, 256), nn.Tanh())]
    model = convert_to_analog(nn.Sequential(*hidden, nn.Linear(256, 10)), chip)
    attachment = bpfree.attach(model, rule)  # behind the conversion, which makes layers anew
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for rows in torch.cat([torch.randperm(len(x)) for _ in range(3)]).split(64)[:steps]:
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    with torch.no_grad():  # in training mode: aihwkit-lightning's noise is off after model.eval()
        noisy = [(model(test_x).argmax(1) == test_y).float().mean().item() for _ in range(5)]
        ideal = (model.eval()(test_x).argmax(1) == test_y).float().mean().item()
    print(
        f"{rule!s:10} {100 * sum(noisy) / 5:.1f} % of test digits with noise, {100 * ideal:.1f} % without", flush=True
    )
