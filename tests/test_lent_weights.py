"""Weights that are not a module's own: lent by functional_call, computed from others, pruned while a model trains."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import remove_parametrizations

import bpfree
from bpfree.errors import BpfreeWarning, SecondRunError, UnsupportedLayerError
from support.models import batch, mlp

STORED = {
    "DFA": (bpfree.DFA(), {}),
    "window": (bpfree.FDFA(), {"window": 2}),
    "alternate": (bpfree.DFA(), {"alternate": 2}),
    "FDFA": (bpfree.FDFA(), {}),
    "LMS": (bpfree.LMS(), {}),
    "GrAPE": (bpfree.GrAPE(), {}),
    "DKP": (bpfree.DKP(), {}),
    "FA": (bpfree.FA(), {}),
    "activations": (bpfree.ForwardGradient("activations"), {}),
    "weights": (bpfree.ForwardGradient("weights"), {}),
}


def attached(model, rule, **options):
    attachment = bpfree.attach(model, rule, seed=3, **options)
    attachment.targets(batch()[1])
    return attachment


def own_gradients(rule, options):
    model, (x, y) = mlp(), batch()
    attached(model, rule, **options)
    F.cross_entropy(model(x), y).backward()
    return dict(model.named_parameters())


def small(model, scale):
    """Weights of which those of ``model`` are a multiple, as a hypernetwork or an inner loop computes them."""
    return {name: (weight.detach() / scale).requires_grad_() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("name", STORED)
def test_weights_that_are_computed_have_the_gradients_of_a_models_own(double, name):
    """Through w = 2 v the gradient of v is twice that of w."""
    rule, options = STORED[name]
    torch.manual_seed(0)
    expected = own_gradients(rule, options)
    torch.manual_seed(0)
    model, (x, y) = mlp(), batch()
    attached(model, rule, **options)
    leaves = small(model, 2)
    F.cross_entropy(functional_call(model, {name: 2 * leaf for name, leaf in leaves.items()}, (x,)), y).backward()
    for weight, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, 2 * expected[weight].grad, rtol=1e-12, atol=1e-12)
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.FDFA()], ids=str)
def test_a_stream_refuses_them(rule):
    model, (x, y) = mlp(), batch()
    attached(model, rule, streaming=True)
    given = {name: 2 * leaf for name, leaf in small(model, 2).items()}
    with pytest.raises(SecondRunError, match="functional_call"):
        F.cross_entropy(functional_call(model, given, (x,)), y).backward()


@pytest.mark.parametrize("factor", [1, None], ids=["leaves", "computed"])
def test_kolen_pollack_says_that_lent_weights_do_not_teach_it(factor):
    model, (x, y) = mlp(), batch()
    attachment = attached(model, bpfree.KolenPollack())
    leaves = small(model, 2)
    given = leaves if factor else {name: 2 * leaf for name, leaf in leaves.items()}
    with pytest.warns(BpfreeWarning, match=r"functional_call lends"):
        F.cross_entropy(functional_call(model, given, (x,)), y).backward()
    assert all(leaf.grad is not None for leaf in leaves.values())
    assert all(B.grad is None for B in attachment.parameters())


def spectral(layer):
    parametrizations.spectral_norm(layer)


def weight_norm(layer):
    parametrizations.weight_norm(layer)


def pruned(layer):
    prune.l1_unstructured(layer, "weight", 0.5)


def taken_back(layer):
    if prune.is_pruned(layer):
        prune.remove(layer, "weight")
    else:
        remove_parametrizations(layer, "weight")


COMPUTED = [spectral, weight_norm, pruned]


@pytest.mark.parametrize("compute", COMPUTED)
def test_kolen_pollack_refuses_a_weight_that_becomes_computed_while_it_trains(compute):
    model, (x, y) = mlp(), batch()
    attachment = attached(model, bpfree.KolenPollack())
    optimizer = torch.optim.SGD([*model.parameters(), *attachment.parameters()], lr=0.1)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    compute(model[2])
    with pytest.raises(UnsupportedLayerError, match=r"weight of layer '2' is no parameter.*pruning"):
        model(x)
    taken_back(model[2])
    F.cross_entropy(model(x), y).backward()
    assert torch.equal(attachment.feedback["2"].grad, model[2].weight.grad)


@pytest.mark.parametrize("compute", COMPUTED)
@pytest.mark.filterwarnings("ignore:the model keeps tensors on itself:bpfree.errors.BpfreeWarning")
def test_pepita_says_that_it_teaches_no_computed_weight(compute):
    """Only the bias learned in such a layer, without a word."""
    model, (x, y) = mlp(), batch()
    compute(model[0])
    compute(model[4])
    attached(model, bpfree.PEPITA())
    with pytest.warns(BpfreeWarning, match=r"weight of layer '0', '4' is computed.*learn nothing.*bpfree\.DFA"):
        F.cross_entropy(model(x), y).backward()
    learned = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert learned == {"0.bias", "2.weight", "2.bias", "4.bias"}
    taken_back(model[0])
    taken_back(model[4])
    F.cross_entropy(model(x), y).backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_pepita_says_nothing_of_weights_that_are_frozen_anyway(recwarn):
    model, (x, y) = mlp(), batch()
    spectral(model[0])
    model[0].parametrizations.requires_grad_(False)
    attached(model, bpfree.PEPITA())
    F.cross_entropy(model(x), y).backward()
    assert not [told for told in recwarn if "is computed" in str(told.message)]


@pytest.mark.parametrize("rule", [bpfree.KolenPollack(), bpfree.DKP(), bpfree.FDFA(stepped_by="optimizer")], ids=str)
def test_feedback_that_waits_for_its_shape_is_a_matrix_for_optimizers_that_ask(double, rule):
    """Muon takes matrices alone. One step of it on B is the one that it takes on a matrix with B's gradient."""
    (x, y), widths = batch(), (6, 7, 9, 4)
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b, bias=False), nn.Tanh())]
    model = nn.Sequential(*layers[:-1])
    attachment = attached(model, rule)
    matrices = [*model.parameters(), *attachment.parameters()]
    optimizer = torch.optim.Muon(matrices, lr=0.1, weight_decay=0.0)
    F.cross_entropy(model(x), y).backward()
    learning = [B for B in attachment.parameters() if B.grad is not None]
    assert len(learning) == 2
    alone = [nn.Parameter(B.detach().clone()) for B in learning]
    for own, B in zip(alone, learning, strict=True):
        own.grad = B.grad.clone()
    optimizer.step()
    torch.optim.Muon(alone, lr=0.1, weight_decay=0.0).step()
    for own, B in zip(alone, learning, strict=True):
        assert torch.equal(own, B)
