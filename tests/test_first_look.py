"""The first look at a model: it leaves no trace, and refuses by name what the rule would make fail."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import bpfree
from bpfree import errors


class Force(nn.Module):
    """The gradient of an energy that is made of a tap."""

    def __init__(self):
        super().__init__()
        self.energy, self.act = nn.Linear(4, 4), nn.Tanh()

    def forward(self, x):
        with torch.enable_grad():
            at = x if x.requires_grad else x.detach().requires_grad_()
            (force,) = torch.autograd.grad(self.act(self.energy(at)).square().sum(), at, create_graph=True)
        return force


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.force, self.head = Force(), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(checkpoint(self.force, x, use_reentrant=False))


# In a checkpoint little is stored, and the exact signals of the tap would be the larger part of a step's memory: no
# gradients are compared then, and the cut pass is run all the same.
@pytest.mark.parametrize("model", [lambda: nn.Sequential(Force(), nn.Linear(4, 3)), Checkpointed])
@pytest.mark.parametrize(
    ("rule", "options"),
    [(bpfree.DFA(), {}), (bpfree.LMS(), {}), (bpfree.DRTP(), {}), (bpfree.DFA(), {"window": 2})],
    ids=str,
)
def test_a_tap_inside_what_the_model_differentiates_is_refused_before_anything_learns(model, rule, options):
    model, x = model(), torch.randn(50, 4)
    attachment = bpfree.attach(model, rule, **options)
    attachment.targets(torch.randint(0, 3, (50,)))
    with pytest.raises(errors.VerificationError, match=r"the model's own pass fails.*tap other modules"):
        model(x)
    assert all(parameter.grad is None for parameter in model.parameters())


class Counting(nn.Module):
    """Counts the gradients that come back to a layer, by a hook on its output."""

    def __init__(self):
        super().__init__()
        self.layer, self.gradients = nn.Linear(32, 3), 0

    def count(self, gradient):
        self.gradients += 1

    def forward(self, x):
        output = self.layer(x)
        if output.requires_grad:
            output.register_hook(self.count)
        return output


@pytest.mark.parametrize("rule", [bpfree.GrAPE(), bpfree.FDFA(), bpfree.LMS(), bpfree.DFA()], ids=str)
def test_hooks_on_gradients_hear_of_the_user_s_backward_pass_alone(rule):
    model = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32), Counting())
    calls = []
    model[2].register_full_backward_hook(lambda module, inputs, outputs: calls.append("module"))
    model[2].weight.register_hook(lambda gradient: calls.append("parameter"))
    attachment = bpfree.attach(model, rule)
    for step in range(1, 3):
        F.cross_entropy(model(torch.randn(5, 32)), torch.randint(0, 3, (5,))).backward()
        assert model[3].gradients == step
        assert sorted(calls) == ["module"] * step + ["parameter"] * step
    bpfree.verify(attachment, torch.randn(5, 32))
    assert model[3].gradients == 2
    assert len(calls) == 4
