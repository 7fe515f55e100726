"""A softmax or sigmoid that ends the model: the error is taken before it."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree.mechanisms.direct.final_activation import FinalActivation


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Ending(nn.Module):
    def __init__(self, end, classes=4):
        super().__init__()
        self.a, self.t, self.b, self.end = nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, classes), copy.deepcopy(end)

    def forward(self, x):
        return self.end(self.b(self.t(self.a(x))))


ENDS = {
    "log_softmax": (lambda z: F.log_softmax(z, 1), lambda o, y: F.nll_loss(o, y)),
    "softmax": (lambda z: z.softmax(-1), lambda o, y: F.nll_loss(o.log(), y)),
    "sigmoid": (torch.sigmoid, lambda o, y: F.binary_cross_entropy(o, F.one_hot(y, 4).double())),
    "log_sigmoid": (F.logsigmoid, lambda o, y: -o.gather(1, y[:, None]).mean()),
    "module": (nn.LogSoftmax(dim=1), lambda o, y: F.nll_loss(o, y)),
    "sigmoid module": (nn.Sigmoid(), lambda o, y: F.binary_cross_entropy(o, F.one_hot(y, 4).double())),
}


def error_by_hand(kind, z, y):
    """dL/dz of these losses."""
    onehot = F.one_hot(y, 4).double()
    if "softmax" in kind or kind == "module":
        return (z.softmax(1) - onehot) / len(z)
    if "log" in kind:
        return -onehot * torch.sigmoid(-z) / len(z)
    return (torch.sigmoid(z) - onehot) / z.numel()


@pytest.mark.filterwarnings("ignore:the model ends in")
@pytest.mark.parametrize("kind", list(ENDS))
@pytest.mark.parametrize("options", [{}, {"streaming": True}, {"window": 2}, {"threads": 2}])
def test_the_error_is_that_of_the_logits(kind, options):
    torch.manual_seed(0)
    end, loss = ENDS[kind]
    model, x, y = Ending(end), torch.randn(8, 6), torch.randint(0, 4, (8,))
    attachment = bpfree.attach(model, bpfree.DFA(), **options)
    loss(model(x), y).backward()
    with torch.no_grad():
        h = torch.tanh(model.a(x))
        e = error_by_hand(kind, model.b(h), y)
        d = e @ attachment.feedback.matrix(attachment.mechanism.sites[0])
        if "window" in options:  # of two segments: backpropagation
            d = e @ model.b.weight
        torch.testing.assert_close(model.a.weight.grad, (d * (1 - h * h)).T @ x)
        torch.testing.assert_close(model.b.weight.grad, e.T @ h)


def test_it_is_said_once_and_turned_off_by_name():
    torch.manual_seed(0)
    x, y = torch.randn(8, 6), torch.randint(0, 4, (8,))
    end, loss = ENDS["log_softmax"]
    model = Ending(end)
    bpfree.attach(model, bpfree.DFA())
    with pytest.warns(bpfree.BpfreeWarning, match="ends in a log_softmax"):
        loss(model(x), y).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error", bpfree.BpfreeWarning)
        loss(model(x), y).backward()
    model = Ending(end)
    attachment = bpfree.attach(model, bpfree.DFA(), error_at="")
    loss(model(x), y).backward()
    with torch.no_grad():
        h = torch.tanh(model.a(x))
        d = -F.one_hot(y, 4).double() / 8 @ attachment.feedback.matrix(attachment.mechanism.sites[0])
        torch.testing.assert_close(model.a.weight.grad, (d * (1 - h * h)).T @ x)


@pytest.mark.parametrize("kind", ["log_softmax", "softmax", "sigmoid", "log_sigmoid"])
def test_the_change_before_it_has_the_same_products_with_the_error(kind):
    """<e_z, dz> is <e_o, do>: what learned feedback and forward gradients are made of."""
    z, dz, e_o = (torch.randn(5, 4) for _ in range(3))
    end, _ = ENDS[kind]
    o, do = torch.func.jvp(end, (z,), (dz,))
    final = FinalActivation(kind, 1 if "softmax" in kind and "log_sig" not in kind else 0)
    before = final.change_before(do, o)
    e_z = final.error_before(e_o, o)
    (exact,) = torch.autograd.grad(end(leaf := z.clone().requires_grad_()), leaf, e_o)
    torch.testing.assert_close(e_z, exact)
    torch.testing.assert_close((e_z * before).sum(1), (e_o * do).sum(1))


@pytest.mark.filterwarnings("ignore:the model ends in")
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_learned_feedback_learns_the_logits_answer(kind):
    """FDFA's B goes to E[dz/dh] = W: of a softmax but for a number that is the same for all classes."""
    torch.manual_seed(0)
    end, loss = ENDS[kind]
    # A pass is as good as its number of rows, and costs little more for many: 96,000 rows in all.
    model, x, y = Ending(end), torch.randn(640, 6), torch.randint(0, 4, (640,))
    attachment = bpfree.attach(model, bpfree.FDFA(beta=1e-4))
    for _ in range(150):
        loss(model(x), y).backward()
    B, W = attachment.feedback["t:16"], model.b.weight.detach()
    if kind == "softmax":
        B, W = B - B.mean(0), W - W.mean(0)
    assert float(F.cosine_similarity(B.flatten(), W.flatten(), 0)) > 0.95
