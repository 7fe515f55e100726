"""Alignment as the code of Launay et al. 2019 measures it, against the measure written out."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree.lab.tasks.alignment_launay2019 import cosines

SAMPLES = 128


def stand_in(model: nn.Module, rule: bpfree.Rule) -> SimpleNamespace:
    """What the measure asks of a learner."""
    attachment = bpfree.attach(model, rule, taps=["1.norm"])
    return SimpleNamespace(
        model=model,
        attachment=attachment,
        aligned_layers=(),
        batch_loss=lambda batch: F.cross_entropy(model(batch[0]), batch[1]),
    )


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first = nn.Sequential()
    for name, layer in (("linear", nn.Linear(6, 20)), ("act", nn.ReLU()), ("norm", nn.BatchNorm1d(20))):
        first.add_module(name, layer)
    model = nn.Sequential(nn.Flatten(), first, nn.Linear(20, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 4))
    with torch.no_grad():  # statistics and outputs of a net that has learned something
        for _ in range(3):
            model(torch.randn(200, 6))
        model[-1].weight.mul_(20_000)
    return model


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(SAMPLES + 40, 6), torch.randint(0, 4, (SAMPLES + 40,))


def test_the_rule_in_evaluation_mode_against_backpropagation_in_training_mode(batch) -> None:
    model = network()
    learner = stand_in(model, bpfree.DFA())
    x, y = batch[0][:SAMPLES], batch[1][:SAMPLES]
    attachment = learner.attachment
    torch.manual_seed(7)
    state = torch.get_rng_state()
    found = cosines(learner, batch)
    # e B, where the outputs are those of evaluation. Some classes are sure to the last bit: their error is zero.
    model.eval()
    with attachment.paused(), torch.no_grad():
        e = (model(x).softmax(1) - F.one_hot(y, 4)) / SAMPLES
    signal = e @ attachment.feedback["shared"] / 20**0.5
    assert 0.05 < float((e == 0).all(1).float().mean()) < 0.9
    # Backpropagation with the batch's statistics and the dropout of that random state.
    model.train()
    torch.set_rng_state(state)
    with attachment.paused():
        h = model[1](x).detach().requires_grad_()
        exact = torch.autograd.grad(F.cross_entropy(model[2:](h), y), h)[0]
    cosine = F.cosine_similarity(signal.double(), exact.double(), dim=1, eps=0)
    expected = torch.where((e == 0).all(1) | (exact == 0).all(1), 0.0, cosine).mean()
    assert found == {"1.norm": pytest.approx(float(expected), abs=1e-6)}
    assert abs(float(expected)) > 1e-3


def test_it_leaves_mode_statistics_and_random_state_alone(batch) -> None:
    learner = stand_in(network(), bpfree.DFA())
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    for training in (True, False):
        learner.model.train(training)
        state = torch.get_rng_state()
        cosines(learner, batch)
        assert all(module.training == training for module in learner.model.modules())
        assert torch.equal(torch.get_rng_state(), state)
        for name, value in learner.model.state_dict().items():
            assert torch.equal(value, before[name])
