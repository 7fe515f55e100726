"""A gradient that the library takes for itself, within a part that the user checkpoints, runs no part again."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import bpfree


class Spike(torch.autograd.Function):
    """A step with a surrogate gradient; its jvp is made of its backward pass."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx, *grads):
        (x,) = ctx.saved_tensors
        return grads[0] / (1 + x.square())


class Spiking(nn.Module):
    def forward(self, x):
        return Spike.apply(x)


class Blocks(nn.Module):
    """Blocks of a layer and spikes, which are checkpointed or not."""

    def __init__(self, checkpointed):
        super().__init__()
        self.checkpointed = checkpointed
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), Spiking()) for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.head(x)


def gradients(model, rule):
    bpfree.attach(model, rule, taps=Spiking, seed=1)
    torch.manual_seed(3)
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.randint(0, 3, (8,))
    for _ in range(2):  # feedback that begins at zero has learned in the first
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize(
    "rule", [bpfree.FDFA(), bpfree.GrAPE(), bpfree.LMS(), bpfree.ForwardGradient("activations")], ids=str
)
def test_spikes_in_a_checkpoint_learn_as_outside(rule):
    torch.manual_seed(0)
    plain = Blocks(checkpointed=False).double()
    torch.manual_seed(0)
    inside = Blocks(checkpointed=True).double()
    expected = gradients(plain, rule)
    assert all(bool(gradient.any()) for gradient in expected)
    for found, one in zip(gradients(inside, rule), expected, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-12, atol=0)
