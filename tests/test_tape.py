"""An estimating pass of some samples takes layers' outputs from the training pass, where they are the same."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import bpfree
from bpfree.forward_mode.sample_part import SamplePart
from bpfree.forward_mode.tape import Tape
from bpfree.layers import kinds

N = 6
pytestmark = pytest.mark.usefixtures("double")


class Turned(nn.Module):
    """Layers whose first axis is not that of the samples, though it is as long."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.second, self.last = nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh()
        self.head = nn.Linear(4, 3)

    def forward(self, x):  # (N, tokens, 4), with as many tokens as samples
        h = self.act(self.first(x.transpose(0, 1)).transpose(0, 1))
        return self.head(self.last(self.second(h.transpose(0, 1)).transpose(0, 1)).mean(1))


class InAndOut(nn.Module):
    """A linear layer whose weight is (in, out), of a kind that the library is told of."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


@pytest.fixture(autouse=True)
def served(monkeypatch):
    monkeypatch.setattr(kinds, "_LINEAR", dict(kinds._LINEAR))
    bpfree.serve_layer(InAndOut, transposed=True)


def stack(*between):
    return nn.Sequential(
        nn.Linear(5, 4), *between, nn.Tanh(), nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.Tanh(),
        nn.Linear(4, 3),
    )  # fmt: skip


def images():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)
    )


def flat(size):
    return lambda: torch.randn(N, size)


# A model, its inputs, and the layers whose outputs for some samples are those in the whole batch.
MODELS = {
    "plain": (stack, flat(5), "0 2 4 6"),
    "dropout": (lambda: stack(nn.Dropout(0.5)), flat(5), ""),
    "dropout of nothing": (lambda: stack(nn.Dropout(0.0)), flat(5), "0 3 5 7"),
    "normalized over the batch": (lambda: stack(nn.BatchNorm1d(4)), flat(5), "0"),
    "convolutions": (images, lambda: torch.randn(N, 2, 6, 6), "0 2 5"),
    "channels last": (images, lambda: torch.randn(N, 2, 6, 6).to(memory_format=torch.channels_last), "0 2 5"),
    "in and out": (lambda: stack(InAndOut(4, 4)), flat(5), "0 1 3 5 7"),
    "turned": (Turned, lambda: torch.randn(N, N, 4), "head"),
}


def trained(name, steps=4):
    """Return the feedback after some steps that move no weight, and the attachment."""
    torch.manual_seed(0)
    make, draw, _ = MODELS[name]
    model = make()
    attachment = bpfree.attach(model, bpfree.FDFA(rows=0.5), seed=1)
    for _ in range(steps):
        torch.manual_seed(2)
        nn.functional.cross_entropy(model(draw()), torch.arange(N) % 3).backward()
    return [buffer.clone() for buffer in attachment.feedback.buffers()], attachment


@pytest.mark.parametrize("name", MODELS)
def test_feedback_is_what_it_is_without_recorded_outputs(name, monkeypatch):
    found, attachment = trained(name)
    used = [
        layer for alike in attachment.mechanism._estimator.tape._alike.values() for layer, is_ in alike.items() if is_
    ]
    names = {module: name for name, module in attachment.model.named_modules()}
    assert [names[layer] for layer in used] == MODELS[name][2].split()
    monkeypatch.setattr(Tape, "record", lambda self, part=None: None)
    expected, _ = trained(name)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_pass_of_half_of_the_samples_costs_a_quarter_of_two_forward_passes():
    torch.manual_seed(0)
    model, x, y = stack(), torch.randn(N, 5), torch.arange(N) % 3
    plain = stack()

    def work(model):
        with FlopCounterMode(display=False) as counter:
            nn.functional.cross_entropy(model(x), y).backward()
        return counter.get_total_flops()

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain[1:](plain[0](x))
    behind_the_tap = counter.get_total_flops() - 2 * N * 5 * 4  # below the first tap nothing has a tangent
    bpfree.attach(plain, bpfree.DFA(feedback=bpfree.Feedback(shared=False)))
    bpfree.attach(model, bpfree.FDFA(rows=0.5))
    for net in (plain, model):
        work(net)
    # The correlations of the estimate, (c x rows) with (rows x n), at three taps of four features.
    correlations = 3 * 2 * 3 * (N // 2) * 4
    assert work(model) - work(plain) == behind_the_tap // 2 + correlations


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_samples_of_an_output_keep_its_memory_format(format):
    part = SamplePart(torch.tensor([1, 4]), N)
    output = torch.randn(N, 3, 4, 5).to(memory_format=format)
    found = part.of_output(output)
    assert torch.equal(found, output[[1, 4]])
    assert found.is_contiguous(memory_format=format)
    assert part.of_output(output[1:]) is None
    assert part.of_output(torch.randn(N)) is None
