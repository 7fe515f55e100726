"""PassChooser of learning that run the model again: with other arguments or weights they must not, and say so."""

import copy
import warnings
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import bpfree
from bpfree import errors

AGAIN = [
    (bpfree.DFA(), {"streaming": True}),
    (bpfree.FDFA(), {}),
    (bpfree.FDFA(), {"streaming": True}),
    (bpfree.ForwardGradient("activations"), {}),
    (bpfree.ForwardGradient("weights"), {}),
    (bpfree.PEPITA(), {}),
]
ONCE = [(bpfree.DFA(), {}), (bpfree.DFA(), {"window": 2}), (bpfree.FA(), {})]


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(5, 6), torch.randint(0, 3, (5,))


class Overwriting(nn.Module):
    """Takes its argument's mean away, in place."""

    def __init__(self):
        super().__init__()
        self.layers = mlp()

    def forward(self, x):
        x.sub_(x.mean(0))
        return self.layers(x)


class Following(nn.Module):
    """Moves a copy of its first layer towards that in the forward pass itself."""

    def __init__(self):
        super().__init__()
        self.layers = mlp()
        self.target = copy.deepcopy(self.layers[0]).requires_grad_(False)
        nn.init.zeros_(self.target.weight)

    def forward(self, x):
        with torch.no_grad():
            self.target.weight.lerp_(self.layers[0].weight, 0.5)
        return self.layers(x + self.target(x).mean())


@pytest.mark.parametrize(("rule", "options"), AGAIN, ids=str)
def test_an_argument_that_the_model_overwrites_is_told(batch, rule, options):
    x, y = batch
    model = Overwriting()
    bpfree.attach(model, rule, **options)
    with pytest.raises(errors.SecondRunError, match="an argument of the model was overwritten"):
        F.cross_entropy(model(x.clone()), y).backward()


@pytest.mark.parametrize(("rule", "options"), AGAIN, ids=str)
def test_a_weight_that_the_model_moves_itself_is_named(batch, rule, options):
    x, y = batch
    model = Following()
    bpfree.attach(model, rule, **options)
    with pytest.raises(errors.SecondRunError, match=r"parameter 'target\.weight' is not what it was"):
        F.cross_entropy(model(x), y).backward()


@pytest.mark.parametrize("model", [Overwriting, Following])
@pytest.mark.parametrize(("rule", "options"), ONCE, ids=str)
def test_where_a_pass_runs_once_the_model_may_do_so(batch, model, rule, options):
    x, y = batch
    model = model()
    plain = copy.deepcopy(model)
    bpfree.attach(model, rule, **options)
    loss = F.cross_entropy(model(x.clone()), y)
    loss.backward()
    assert loss == F.cross_entropy(plain(x.clone()), y)


@pytest.mark.parametrize(
    ("rule", "options"), [(bpfree.DFA(), {"streaming": True}), (bpfree.PEPITA(), {})], ids=["streaming", "PEPITA"]
)
def test_weights_that_are_only_lent_are_told(batch, rule, options):
    x, y = batch
    model, lent = mlp(), {name: weight.detach().requires_grad_() for name, weight in mlp().named_parameters()}
    bpfree.attach(model, rule, **options)
    loss = F.cross_entropy(functional_call(model, lent, (x,)), y)
    with pytest.raises(errors.SecondRunError, match=r"'0\.weight'.*functional_call lends"):
        loss.backward()


@pytest.mark.parametrize("learns_first", [False, True])
def test_a_parameter_that_is_frozen_or_unfrozen_before_its_error_comes_is_named(batch, learns_first):
    x, y = batch
    model = mlp()
    bpfree.attach(model, bpfree.DFA(), streaming=True)
    model[2].weight.requires_grad_(learns_first)
    loss = F.cross_entropy(model(x), y)
    model[2].weight.requires_grad_(not learns_first)
    with pytest.raises(errors.SecondRunError, match=r"'2\.weight'.*Freeze and unfreeze"):
        loss.backward()


class RegisteringAnew(nn.Module):
    """Takes a weight out of its layer and puts it back, as code that exchanges it for one call does."""

    def __init__(self):
        super().__init__()
        self.layers = mlp()

    def forward(self, x):
        parameters = self.layers[0]._parameters
        parameters["weight"] = parameters.pop("weight")
        return self.layers(x)


@pytest.mark.parametrize(("rule", "options"), AGAIN, ids=str)
def test_the_same_weights_registered_in_another_order_have_not_changed(batch, rule, options):
    x, y = batch
    model = RegisteringAnew()
    with bpfree.attach(model, rule, **options):
        F.cross_entropy(model(x), y).backward()
    assert all(parameter.grad is not None for parameter in model.layers[4].parameters())


@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.FDFA(), bpfree.FA(), bpfree.ForwardGradient("weights")], ids=str)
def test_lent_weights_learn_where_the_forward_pass_is_all(batch, rule):
    x, y = batch
    model, other = mlp(), mlp()
    lent = {name: weight.detach().clone().requires_grad_() for name, weight in other.named_parameters()}
    for one in (model, other):
        bpfree.attach(one, rule)
    F.cross_entropy(functional_call(model, lent, (x,)), y).backward()
    F.cross_entropy(other(x), y).backward()
    for name, weight in other.named_parameters():
        assert torch.equal(lent[name].grad, weight.grad), name
    assert all(weight.grad is None for weight in model.parameters())


# -- what stays without a gradient ---------------------------------------------------------------------------------


class Autoencoder(nn.Module):
    """Also returns its code, for a loss term of its own."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6))
        self.last = nn.Linear(6, 6)

    def forward(self, x):
        code = self.encoder(x)
        return self.last(self.decoder(code)), {"code": code, "input": x}


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (bpfree.DFA(), {"streaming": True, "verify": False}),
        (bpfree.ForwardGradient("weights"), {}),
        (bpfree.PEPITA(), {}),
    ],
    ids=["streaming", "ForwardGradient", "PEPITA"],
)
def test_a_second_result_without_a_graph_is_warned_of(batch, rule, options):
    model = Autoencoder()
    bpfree.attach(model, rule, error_at="last", **options)
    with pytest.warns(bpfree.BpfreeWarning, match=r"a tensor \(5, 3\) without a graph besides what comes of 'last'"):
        model(batch[0])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_second_result_with_its_graph_or_of_the_arguments_is_not(batch, streaming):
    class Twice(Autoencoder):
        def forward(self, x):
            result, others = super().forward(x)
            return (result, others) if not streaming else (result, result * 2, others["input"])

    model = Twice()
    bpfree.attach(model, bpfree.DFA(), error_at="last", streaming=streaming)
    with warnings.catch_warnings():
        warnings.simplefilter("error", bpfree.BpfreeWarning)
        model(batch[0])


@pytest.mark.parametrize("rule", [bpfree.PEPITA(), bpfree.ForwardGradient("weights")], ids=str)
def test_an_argument_that_wants_a_gradient_is_warned_of(batch, rule):
    x, y = batch
    below, model = nn.Linear(6, 6), mlp()
    bpfree.attach(model, rule)
    with pytest.warns(bpfree.BpfreeWarning, match="an argument of the model wants a gradient"):
        F.cross_entropy(model(below(x)), y).backward()
    assert below.weight.grad is None


# -- gradients of gradients ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:an argument of the model")
@pytest.mark.parametrize(
    ("rule", "options"),
    [*ONCE, (bpfree.FDFA(), {}), (bpfree.DFA(), {"streaming": True}), (bpfree.DFA(), {"threads": 2})],
    ids=str,
)
def test_a_gradient_penalty_is_refused(batch, rule, options):
    model = mlp()
    attachment = bpfree.attach(model, rule, **options)
    x = batch[0].requires_grad_()
    with pytest.raises(errors.SecondDerivativeError, match=r"attachment\.paused\(\)"):
        torch.autograd.grad(model(x).sum(), x, create_graph=True)
    with attachment.paused():
        (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        gradient.square().sum().backward()
    assert all(layer.weight.grad is not None for layer in model if isinstance(layer, nn.Linear))


def test_detached_before_its_error_a_stream_says_so(batch):
    x, y = batch
    model = mlp()
    attachment = bpfree.attach(model, bpfree.DFA(), streaming=True)
    loss = F.cross_entropy(model(x), y)
    attachment.detach()
    with pytest.raises(errors.StreamingError, match="detached between the model and"):
        loss.backward()


@pytest.mark.parametrize(("rule", "options", "is_right"), [(*w, False) for w in AGAIN] + [(*w, True) for w in ONCE])
def test_verify_finds_an_overwritten_argument_where_the_model_runs_again(batch, rule, options, is_right):
    attachment = bpfree.attach(nn.Sequential(nn.ELU(inplace=True), *mlp()), rule, **options)
    with suppress(() if is_right else errors.SecondRunError):
        report = bpfree.verify(attachment, batch[0])
        assert report.is_right == is_right
        assert ("second run" in report.checks) != is_right
