"""torch.compile keeps code by class: none of a model without a rule may serve one that has it, nor the other way."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(autouse=True)
def _as_torch_begins():
    torch._dynamo.config.skip_nnmodule_hook_guards = True
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def gradient(model, run):
    torch.manual_seed(1)
    x, y = torch.randn(5, 6), torch.randint(0, 3, (5,))
    model.zero_grad()
    F.cross_entropy(run(x), y).backward()
    return model.layers[0].weight.grad.clone()


def compiled(model):
    return gradient(model, torch.compile(model, backend="aot_eager"))


def attached(rule):
    model = Net()
    bpfree.attach(model, rule, example_inputs=torch.randn(5, 6))
    return model


@pytest.mark.parametrize("rule", [bpfree.FA(), bpfree.DFA()], ids=str)
@pytest.mark.parametrize("attached_first", [False, True])
def test_a_compiled_baseline_of_the_same_class_changes_no_rule(rule, attached_first):
    model = attached(rule) if attached_first else None
    baseline = compiled(Net())
    model = model or attached(rule)
    expected = gradient(model, model)
    torch.testing.assert_close(compiled(model), expected)
    assert not torch.allclose(expected, baseline)
    torch.testing.assert_close(compiled(Net()), baseline)


def test_a_compiled_model_learns_by_what_is_attached_to_it_then():
    model = Net()
    run = torch.compile(model, backend="aot_eager")
    by_backpropagation = gradient(model, run)
    attachment = bpfree.attach(model, bpfree.FA(), example_inputs=torch.randn(5, 6))
    torch.testing.assert_close(gradient(model, run), gradient(model, model))
    assert not torch.allclose(gradient(model, run), by_backpropagation)
    attachment.detach()
    torch.testing.assert_close(gradient(model, run), by_backpropagation)
