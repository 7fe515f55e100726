"""Losses besides the error: they reach what lies above a tap, and the segment below it, as backpropagation does."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import bpfree
from bpfree import errors


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Routed(nn.Module):
    """Two blocks with a tap each; behind the second one a router, whose balance is a loss of its own."""

    def __init__(self, keep):
        super().__init__()
        self.a, self.s, self.b, self.t = nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh()
        self.route, self.experts = nn.Linear(8, 4), nn.Linear(8, 12)
        self.keep, self.balance, self.history, self.named = keep, None, [], {}

    def forward(self, x):
        h = self.t(self.b(self.s(self.a(x))))
        p = self.route(h).softmax(1)
        balance = 4 * p.mean(0).square().sum()
        if self.keep == "attribute":
            self.balance = balance
        elif self.keep == "list":
            self.history.append(balance)
        elif self.keep == "dictionary":
            self.named["balance"] = balance
        o = (p[:, :, None] * self.experts(h).view(len(x), 4, 3)).sum(1)
        return (o, balance) if self.keep == "returned" else o

    def term(self, output):
        kept = {"attribute": self.balance, "list": self.history[-1:], "dictionary": self.named.get("balance")}
        found = output[1] if self.keep == "returned" else kept[self.keep]
        return found[0] if isinstance(found, list) else found


def setting(keep):
    torch.manual_seed(0)
    return Routed(keep), torch.randn(16, 6), torch.randint(0, 3, (16,))


def balance_by_hand(model, x):
    """The gradients of the balance at (b, route): within the segment below the second tap, and above it."""
    with torch.no_grad():
        h1 = torch.tanh(model.a(x))
        h = torch.tanh(model.b(h1))
        p = model.route(h).softmax(1)
        of_p = (8 * p.mean(0) / len(x)).expand_as(p)
        of_z = p * (of_p - (of_p * p).sum(1, keepdim=True))
        d = of_z @ model.route.weight
        return (d * (1 - h * h)).T @ h1, of_z.T @ h


@pytest.mark.parametrize(
    "rule", [bpfree.DFA(), bpfree.DKP(), bpfree.Shallow(), bpfree.DFA(feedback=bpfree.Feedback(shared=False))]
)
@pytest.mark.parametrize("keep", ["attribute", "list", "dictionary", "returned"])
def test_a_balance_term_reaches_the_segment_below(keep, rule):
    model, x, _ = setting(keep)
    bpfree.attach(model, rule, **({"error_at": "experts"} if keep == "returned" else {}))
    output = model(x)
    model.term(output).backward()
    of_b, of_route = balance_by_hand(model, x)
    torch.testing.assert_close(model.route.weight.grad, of_route)
    torch.testing.assert_close(model.b.weight.grad, of_b)
    assert model.a.weight.grad is None  # the tap below is a cut for this loss too


def test_it_adds_to_the_error_and_changes_none_of_it():
    found = {}
    for weights in ((1, 0), (0, 1), (1, 1)):
        model, x, y = setting("attribute")
        bpfree.attach(model, bpfree.DFA())
        o = model(x)
        (weights[0] * F.cross_entropy(o, y) + weights[1] * model.balance).backward()
        found[weights] = [parameter.grad for parameter in model.parameters()]
    plain = bpfree.attach(setting("nowhere")[0], bpfree.DFA())
    F.cross_entropy(plain.model(x), y).backward()
    for error, side, both, alone in zip(*found.values(), (p.grad for p in plain.model.parameters()), strict=True):
        torch.testing.assert_close(both, error + (0 if side is None else side))
        torch.testing.assert_close(error, alone)  # as if nothing were kept


class Kept(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.t, self.b = nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)

    def forward(self, x):
        self.kept = self.t(self.a(x))
        return self.b(self.kept)


def penalty_by_hand(model, x):
    """The gradient of the mean square of the tap's output at its own layer."""
    with torch.no_grad():
        h = torch.tanh(model.a(x))
        return (2 * h / h.numel() * (1 - h * h)).T @ x


@pytest.mark.parametrize("way", ["hook before", "hook after", "attribute", "hook in place"])
def test_a_penalty_on_a_taps_output(way):
    torch.manual_seed(0)
    model, x, seen = Kept(), torch.randn(8, 6), []
    if way == "hook before":
        model.t.register_forward_hook(lambda module, args, output: seen.append(output))
    bpfree.attach(model, bpfree.DFA())
    if way.startswith("hook") and way != "hook before":
        model.t.register_forward_hook(lambda module, args, output: seen.append(output))
    o = model(x)
    h = model.kept if way == "attribute" else seen[-1]
    (0 * o.sum() + h.square().mean()).backward()
    torch.testing.assert_close(model.a.weight.grad, penalty_by_hand(model, x))


def test_a_term_made_in_a_checkpointed_part():
    class Checkpointed(Kept):
        def forward(self, x):
            h = checkpoint(lambda z: self.t(self.a(z)), x, use_reentrant=False)
            self.kept = h.square().mean()
            return self.b(h)

    torch.manual_seed(0)
    model, x = Checkpointed(), torch.randn(8, 6)
    bpfree.attach(model, bpfree.DFA())
    o = model(x)
    (0 * o.sum() + model.kept).backward()
    torch.testing.assert_close(model.a.weight.grad, penalty_by_hand(model, x))


class LookedAt(nn.Module):
    """Keeps the mean square of its tap's output, also where nothing below the tap learns."""

    def __init__(self, below, again):
        super().__init__()
        self.below, self.tap, self.head, self.again = below, nn.Tanh(), nn.Linear(6, 3), again
        self.kept = None

    def _part(self, x):
        h = self.tap(self.below(x))
        return h, h.square().mean()

    def forward(self, x):
        h, self.kept = checkpoint(self._part, x, use_reentrant=False) if self.again else self._part(x)
        return self.head(h)


BELOW = {
    "inputs": nn.Identity,
    "a frozen layer": lambda: nn.Linear(6, 6).requires_grad_(False),
    "a layer": lambda: nn.Linear(6, 6),
}


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("below", BELOW)
def test_a_term_has_a_graph_where_it_has_one_without_the_rule(below, again):
    torch.manual_seed(0)
    model, x = LookedAt(BELOW[below](), again), torch.randn(5, 6)
    with bpfree.attach(model, bpfree.DFA(), taps="tap"):
        (model(x).square().sum() + model.kept).backward()
        found = model.kept.requires_grad
    assert found == (below == "a layer")
    model(x)
    assert model.kept.requires_grad == found


def test_a_side_head_learns_from_its_own_loss():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.t, self.main = nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)
            self.side = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 1))

        def forward(self, x):
            h = self.t(self.a(x))
            value = self.side(h)
            return self.main(h), value

    torch.manual_seed(0)
    model, x, r = Heads(), torch.randn(8, 6), torch.randn(8, 1)
    attachment = bpfree.attach(model, bpfree.DFA(), error_at="main")
    F.mse_loss(model(x)[1], r).backward()
    ours = [parameter.grad.clone() for parameter in (model.a.weight, *model.side.parameters())]
    model.zero_grad()
    with attachment.paused():
        F.mse_loss(model(x)[1], r).backward()
    for found, exact in zip(ours, (model.a.weight, *model.side.parameters()), strict=True):
        torch.testing.assert_close(found, exact.grad)
    assert "Left alone, 'side.1'" in str(attachment)


@pytest.mark.parametrize("keep", ["attribute", "list", "returned"])
def test_a_window_carries_no_such_loss_and_refuses_it(keep):
    model, x, y = setting(keep)
    bpfree.attach(model, bpfree.DFA(), window=2, **({"error_at": "experts"} if keep == "returned" else {}))
    output = model(x)
    with pytest.raises(errors.OptionError, match="Leave the window out"):
        (F.cross_entropy(output[0] if keep == "returned" else output, y) + model.term(output)).backward()


def test_a_window_serves_where_such_a_term_is_only_looked_at():
    found = []
    for keep in ("attribute", "nowhere"):
        model, x, y = setting(keep)
        bpfree.attach(model, bpfree.DFA(), window=2)
        F.cross_entropy(model(x), y).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_stream_has_no_such_loss_and_refuses():
    model, x, _ = setting("attribute")
    bpfree.attach(model, bpfree.DFA(), streaming=True)
    with pytest.raises(errors.StreamingError, match=r"'balance'.*Train without streaming"):
        model(x)


@pytest.mark.parametrize(("name", "is_told"), [("route", True), ("experts", False), ("b", False)])
def test_backward_hooks_that_hear_such_a_loss_apart_are_told(name, is_told):
    model, x, _ = setting("returned")
    heard = []
    model.get_submodule(name).register_full_backward_hook(lambda module, inputs, outputs: heard.append(1))
    bpfree.attach(model, bpfree.DFA())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        output, balance = model(x)
    assert any(f"backward hooks on '{name}' do not see" in str(warning.message) for warning in told) == is_told
    (output.square().mean() + balance).backward()
    if not is_told:
        assert len(heard) == 1


@pytest.mark.parametrize("options", [{}, {"threads": 2}], ids=str)
@pytest.mark.parametrize("is_learned", [True, False])
def test_backward_hooks_on_a_tap_under_such_a_loss_are_called_once(is_learned, options):
    gradients, heard, asked = [], [], []
    for factor in (1.0, 0.5):
        model, x, _ = setting("returned")
        model.t.register_full_backward_hook(lambda module, inputs, outputs, by=factor: (by * inputs[0],))
        model.t.register_full_backward_hook(lambda module, inputs, outputs: heard.append(1))
        model.t.register_full_backward_pre_hook(lambda module, outputs: asked.append(1))
        bpfree.attach(model, bpfree.DFA(), **options)
        output, balance = model(x)
        (output.square().mean() + is_learned * balance).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert len(heard) == len(asked) == 2
    plain, scaled = gradients
    for name, gradient in plain.items():
        torch.testing.assert_close(scaled[name], gradient * (0.5 if name.startswith("b.") else 1.0))


def test_models_without_such_terms_form_no_gradient_between_segments():
    model, x, y = setting("nowhere")
    bpfree.attach(model, bpfree.DFA())
    inputs = []
    model.route.register_forward_pre_hook(lambda module, args: inputs.append(args[0].requires_grad))
    F.cross_entropy(model(x), y).backward()
    assert inputs[-1] is False
