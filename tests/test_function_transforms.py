"""Models within transforms of torch.func, with tangents, or with several errors at once; and transforms within models.

A model learns there by the rule, by backpropagation where that is asked for, or not at all with an error that says so.
"""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

import bpfree
from bpfree.errors import LoopError, StreamingError
from support.models import batch, mlp

RULES = {
    "DFA": (bpfree.DFA(), {}),
    "window": (bpfree.DFA(), {"window": 2}),
    "alternate": (bpfree.FDFA(), {"alternate": 2}),
    "streaming": (bpfree.DFA(), {"streaming": True}),
    "threads": (bpfree.DFA(), {"threads": 2}),
    "unchecked": (bpfree.DFA(), {"verify": False}),
    "FDFA": (bpfree.FDFA(), {}),
    "LMS": (bpfree.LMS(), {}),
    "DKP": (bpfree.DKP(), {}),
    "FA": (bpfree.FA(), {}),
    "KolenPollack": (bpfree.KolenPollack(), {}),
    "WeightMirror": (bpfree.WeightMirror(), {}),
    "PEPITA": (bpfree.PEPITA(), {}),
    "activations": (bpfree.ForwardGradient("activations"), {}),
    "weights": (bpfree.ForwardGradient("weights"), {}),
}
every_rule = pytest.mark.parametrize("name", RULES)

LAYERWISE = "FA", "KolenPollack", "WeightMirror"


def attached(name, model, **options):
    rule, own = RULES[name]
    return bpfree.attach(model, rule, seed=3, **{**own, **options})


def single(model, weights, row, target):
    return F.cross_entropy(functional_call(model, weights, (row[None],)), target[None])


def per_sample(model, x, y):
    """The gradients of single samples, as papers on privacy take them."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    return vmap(grad(lambda *given: single(model, *given)), in_dims=(None, 0, 0))(weights, x, y)


CALLS = {
    "vmap": lambda model, x, y: vmap(model)(x),
    "grad": lambda model, x, y: grad(lambda x: F.cross_entropy(model(x), y))(x),
    "jacrev": lambda model, x, y: jacrev(model)(x),
    "jvp": lambda model, x, y: jvp(model, (x,), (x,)),
    "per sample": per_sample,
}


@pytest.mark.parametrize("call", CALLS)
@every_rule
@pytest.mark.filterwarnings("ignore:an argument of the model wants:bpfree.errors.BpfreeWarning")
def test_a_model_within_a_transform_is_refused(name, call):
    """Layerwise rules were backpropagation there: a tensor in ``vmap`` says that it requires no gradient."""
    model, (x, y) = mlp(), batch()
    attachment = attached(name, model)
    with pytest.raises(LoopError, match=r"within a transform of torch\.func.*loss\.backward.*attachment\.paused"):
        CALLS[call](model, x, y)
    # The next step is not touched by it.
    attachment.targets(y)
    F.cross_entropy(model(x), y).backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in model.parameters())


@every_rule
def test_paused_it_is_backpropagation_and_without_gradients_it_runs(double, name):
    model, plain, (x, y) = mlp(), mlp(), batch()
    plain.load_state_dict(model.state_dict())
    attachment = attached(name, model)
    with attachment.paused():
        found, expected = per_sample(model, x, y), per_sample(plain, x, y)
    for weight, gradients in found.items():
        assert torch.equal(gradients, expected[weight])
    with torch.no_grad():
        assert torch.equal(vmap(model)(x), vmap(plain)(x))


@every_rule
def test_an_argument_with_a_tangent_is_refused(name):
    """A cut hands on numbers without their tangent, and the derivative would be that of the layers above it."""
    model, plain, (x, _) = mlp(), mlp(), batch()
    plain.load_state_dict(model.state_dict())
    attachment = attached(name, model)
    with forward_ad.dual_level():
        given = forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(LoopError, match=r"tangent.*attachment\.paused"):
            model(given)
        with attachment.paused():
            found = forward_ad.unpack_dual(model(given)).tangent
        expected = forward_ad.unpack_dual(plain(given)).tangent
    assert torch.equal(found, expected)


def test_a_level_of_forward_mode_without_tangents_is_no_hindrance():
    model, (x, y) = mlp(), batch()
    bpfree.attach(model, bpfree.DFA(), seed=3)
    with forward_ad.dual_level():
        F.cross_entropy(model(x), y).backward()
    assert all(weight.grad is not None for weight in model.parameters())


def of_rows(model, losses):
    weights = list(model.parameters())
    return torch.autograd.grad(losses, weights, torch.eye(len(losses)), is_grads_batched=True)


@pytest.mark.parametrize("name", ["BP", *LAYERWISE])
def test_several_errors_at_once_have_the_gradients_of_each(double, name):
    """Where signals are products with B they are as good for several errors; hooks that look at numbers let them by."""
    model, (x, y) = mlp(), batch()
    if name == "BP":
        bpfree.attach(model, bpfree.BP())
    else:
        attached(name, model)
    losses = F.cross_entropy(model(x), y, reduction="none")
    one_by_one = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in losses]
    for found, expected in zip(of_rows(model, losses), zip(*one_by_one, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["DFA", "window", "alternate", "FDFA", "LMS", "DKP", "PEPITA", "activations", "weights"]
)
def test_several_errors_at_once_are_refused_where_signals_are_made_of_one(name):
    model, (x, y) = mlp(), batch()
    attached(name, model)
    with pytest.raises(LoopError, match=r"several errors come in one backward pass.*retain_graph=True"):
        of_rows(model, F.cross_entropy(model(x), y, reduction="none"))


# -- transforms within the model ---------------------------------------------------------------------------------------


class Energy(nn.Module):
    """One step down the energy of a part, whose gradient the model takes by torch.func."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.tap = nn.Linear(6, 5), nn.Tanh()
        self.inner, self.act, self.energy = nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)
        self.last = nn.Linear(5, 4)

    def slope(self, h):
        return grad(lambda h: self.energy(self.act(self.inner(h))).sum())(h)

    def forward(self, x):
        h = self.tap(self.first(x))
        return self.last(h - self.slope(h))


class EnergyOfRows(Energy):
    def slope(self, h):
        return vmap(grad(lambda row: self.energy(self.act(self.inner(row))).sum()))(h)


class WrittenOut(Energy):
    """The same slope from the formula: W1^T (W2 (1 - a^2))."""

    def slope(self, h):
        a = torch.tanh(self.inner(h))
        return (self.energy.weight * (1 - a.square())) @ self.inner.weight


class Mapped(nn.Module):
    """A layer and a tap that run for one row at a time."""

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.act, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)

    def forward(self, x):
        return self.last(vmap(lambda row: self.act(self.inner(row)))(torch.tanh(self.first(x))))


@pytest.mark.parametrize("model", [Energy, EnergyOfRows])
@pytest.mark.parametrize("name", ["DFA", "alternate", "unchecked", "FDFA", "LMS", "DKP", "activations"])
def test_a_transform_between_taps_is_part_of_a_segment(double, name, model):
    """The gradients, and the feedback that has learned, are those of the model with the derivative written out."""
    x, y = batch()
    found = []
    for kind in (model, WrittenOut):
        net = kind()
        attachment = attached(name, net, taps="tap")
        for _ in range(2):
            F.cross_entropy(net(x), y).backward()
        gradients = [weight.grad for weight in net.parameters() if weight is not net.energy.bias]
        found.append([*gradients, *(kept for kept in attachment.feedback.buffers() if kept.is_floating_point())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("model", [Energy, EnergyOfRows, Mapped])
@pytest.mark.parametrize("name", ["DFA", "FDFA", "LMS", "DKP", "unchecked", "activations", *LAYERWISE, "PEPITA"])
def test_taps_and_layers_within_a_transform_are_refused(name, model):
    net, (x, y) = model(), batch()
    attached(name, net, taps=nn.Tanh)
    with pytest.raises(
        LoopError, match=r"(tap|layer) '(act|inner)' is called within a transform of torch\.func.*taps="
    ):
        F.cross_entropy(net(x), y).backward()


@pytest.mark.parametrize("verify", [True, False])
def test_a_stream_says_that_it_cannot_run_a_transform(verify):
    net, (x, _) = Energy(), batch()
    attached("streaming", net, taps="tap", verify=verify)
    with pytest.raises(StreamingError, match=r"transform of torch\.func.*without streaming"):
        net(x)
