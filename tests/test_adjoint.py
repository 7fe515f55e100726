"""The dot-product test of tangents against gradients: silent where they fit, and naming the place where they do not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree.rerun.snapshot import RunSnapshot
from bpfree.verification.adjoint import check_adjoint
from test_estimate import CLASSES, Twice, convnet, mlp


def findings(model, x, seed=0, **options):
    """What the test finds, in the way in which it is used: behind a pass of the rule's own."""
    options = {"taps": [name for name, part in model.named_modules() if isinstance(part, nn.Tanh)] or None} | options
    # The attachment itself would refuse such a model.
    attachment = bpfree.attach(model, bpfree.FDFA(), example_inputs=x, verify=False, **options)
    mechanism = attachment.mechanism
    start = RunSnapshot.now(mechanism.plan, ((x,), {}))
    state = [buffer.clone() for buffer in model.buffers()]
    found = check_adjoint(mechanism._estimator, ((x,), {}), start, mechanism.sites, seed)
    assert all(torch.equal(now, then) for now, then in zip(model.buffers(), state, strict=True))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    attachment.detach()
    return found


class Stopped(nn.Module):
    """A branch without gradients, and one in place."""

    def __init__(self):
        super().__init__()
        self.first, self.tap, self.head = nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, CLASSES)

    def forward(self, x):
        h = self.tap(self.first(x))
        with torch.no_grad():
            scale = h.norm(dim=1, keepdim=True)
        return self.head(h).mul_(2) / scale


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("build", "shape"),
    [(mlp, (6, 5)), (convnet, (4, 2, 8, 8)), (Twice, (6, 5)), (Stopped, (6, 5))],
    ids=["mlp", "convolution, statistics, dropout", "one tap three times", "no_grad"],
)
def test_nothing_is_found_where_tangents_and_gradients_fit(build, shape, dtype):
    torch.manual_seed(0)
    model, x = build().to(dtype), torch.randn(shape, dtype=dtype)
    for seed in range(5):
        assert findings(model, x, seed) == []


def wrong_jvp(slope):
    """The identity with a gradient of its own and another tangent."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g

        @staticmethod
        def jvp(ctx, t):
            return slope(t)

    class Inner(nn.Module):
        def forward(self, x):
            return Wrong.apply(x)

    return Inner


class Deep(nn.Module):
    def __init__(self, inner, width=16):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.acts = nn.ModuleList(nn.Tanh() for _ in range(3))
        self.block, self.head = nn.Sequential(nn.Linear(width, width), inner), nn.Linear(width, CLASSES)

    def forward(self, x):
        for number, (layer, act) in enumerate(zip(self.layers, self.acts, strict=True)):
            x = act(layer(x))
            if number == 1:
                x = self.block(x)
        return self.head(x)


WRONG = {
    "the other sign": lambda t: -t,
    "nothing": torch.zeros_like,
    "half": lambda t: t / 2,
    "shifted": lambda t: t.roll(1, -1),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("slope", WRONG)
def test_a_jvp_that_does_not_fit_its_backward_is_named(slope, dtype):
    torch.manual_seed(0)
    model, x = Deep(wrong_jvp(WRONG[slope])()).to(dtype), torch.randn(8, 16, dtype=dtype)
    (found,) = findings(model, x)
    assert found.check == "adjoint"
    assert found.wrong
    # The last tap below the place; the one above it is right.
    assert found.where == "acts.1"
    assert "'block.1' (Inner)" in found.found


def test_a_tangent_that_is_lost_on_one_of_two_branches_is_found(double):
    class Numbers(nn.Module):
        def forward(self, x):
            return Cut.apply(x)

    class Cut(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * x.cos()

        @staticmethod
        def jvp(ctx, t):
            return torch.zeros_like(t)

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.tap, self.cut, self.head = nn.Linear(5, 6), nn.Tanh(), Numbers(), nn.Linear(6, CLASSES)

        def forward(self, x):
            h = self.tap(self.first(x))
            return self.head(h + self.cut(h))

    (found,) = findings(Branches(), torch.randn(6, 5))
    assert found.where == "tap"
    assert "'cut' (Numbers)" in found.found


def test_a_fault_in_the_forward_of_the_model_itself_is_placed_between_taps(double):
    wrong = wrong_jvp(lambda t: -t)()

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.t1, self.b, self.t2 = nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh()
            self.head = nn.Linear(6, CLASSES)

        def forward(self, x):
            h = self.t1(self.a(x))
            return self.head(self.t2(self.b(h)) + F.tanh(wrong.forward(h)))

    (found,) = findings(Functional(), torch.randn(6, 5))
    assert "between tap 't1' and 't2'" in found.found
