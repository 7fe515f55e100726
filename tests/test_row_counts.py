"""Rows that no loss touches: they count in no mean and get no signal."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from support.by_hand import assert_same

ROWS, KNOWN, C = 12, 5, 3
RULES = [
    bpfree.DFA(),
    bpfree.DFA(reduction="sum"),
    bpfree.DFA(error="sign"),
    bpfree.DFA(error="sign", reduction="sum"),
    bpfree.DFA(error="ternary"),
    bpfree.DFA(error="ternary", reduction="sum"),
    bpfree.DRTP(),
    bpfree.DRTP(reduction="sum"),
    bpfree.PEPITA(),
    bpfree.PEPITA(output_error="second"),
]


@pytest.fixture(autouse=True)
def _double(double):
    torch.manual_seed(0)


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, C))


def gradients(rule, x, y, of_output, targets):
    model = net()
    attachment = bpfree.attach(model, rule)
    attachment.targets(targets)
    output = model(x)
    F.cross_entropy(of_output(output), y).backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_nodes_without_a_label_change_nothing(rule):
    x, y = torch.randn(ROWS, 4), torch.randint(0, C, (ROWS,))
    all_rows = gradients(rule, x, y[:KNOWN], lambda o: o[:KNOWN], y)
    assert_same(all_rows, gradients(rule, x[:KNOWN], y[:KNOWN], lambda o: o, y[:KNOWN]))


@pytest.mark.parametrize("rule", RULES[:8], ids=str)
def test_padded_tokens_change_nothing(rule):
    # Two sequences; of the second only two tokens are there.
    x, y = torch.randn(2, 4, 4), torch.randint(0, C, (2, 4))
    masked = y.clone()
    masked[1, 2:] = -100
    padded = gradients(rule, x, masked.flatten(), lambda o: o.flatten(0, 1), y)
    there = (masked != -100).flatten()
    flat, labels = x.flatten(0, 1)[there], y.flatten()[there]
    assert_same(padded, gradients(rule, flat, labels, lambda o: o, labels))


@pytest.mark.parametrize("rule", RULES[6:8], ids=str)
def test_targets_of_rows_without_a_loss_do_not_leak(rule):
    x, y = torch.randn(ROWS, 4), torch.randint(0, C, (ROWS,))
    other = y.clone()
    other[KNOWN:] = (y[KNOWN:] + 1) % C
    one, two = (gradients(rule, x, y[:KNOWN], lambda o: o[:KNOWN], given) for given in (y, other))
    assert_same(one, two)


def test_rows_without_a_target_are_not_counted_where_the_error_is_not_known():
    # Streaming with targets given before the pass: segments learn before there is an error.
    y = torch.randint(0, C, (ROWS,))
    y[KNOWN:] = -100
    x, found = torch.randn(ROWS, 4), []
    for options in ({}, {"streaming": True}):
        model = net()
        attachment = bpfree.attach(model, bpfree.DRTP(), example_inputs=x, **options)
        attachment.targets(y)
        F.cross_entropy(model(x), y).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert_same(*found)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_batch_without_any_loss_teaches_nothing(rule):
    if rule == bpfree.PEPITA(output_error="second"):
        pytest.skip("the targets are in the error, and there is none")
    model = net()
    attachment = bpfree.attach(model, rule)
    attachment.targets(torch.zeros(ROWS, dtype=torch.long))
    (model(torch.randn(ROWS, 4)) * 0).sum().backward()
    assert all(not parameter.grad.any() for parameter in model.parameters())


def test_the_rows_of_images_and_of_steps_are_counted_as_they_are_laid_out():
    # A loop over three steps of which only the last has a loss: N is the two samples.
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.tanh, self.o = nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, C)

        def forward(self, x):
            return torch.stack([self.o(self.tanh(self.i(x[:, t]))) for t in range(3)], 1)

    torch.manual_seed(2)
    model, x = Loop(), torch.randn(2, 3, 4)
    attachment = bpfree.attach(model, bpfree.DFA(feedback=bpfree.Feedback(normalization="none"), reduction="sum"))
    error = torch.randn(2, C)
    model(x)[:, 2].backward(error)
    h = model.i(x[:, 2]).tanh().detach()
    delta = (2 * error @ attachment.feedback["shared"]) * (1 - h**2)
    assert_same([model.i.weight.grad], [delta.T @ x[:, 2]])
