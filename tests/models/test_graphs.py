"""Rules on PyTorch Geometric's networks, against the graph convolution written out with a dense matrix."""

import pytest
import torch
import torch.nn.functional as F

import bpfree
from support.by_hand import assert_same
from support.rule_contract import Subject, assert_equal, assert_rule_serves, cut, matrices, softmax_error

pytestmark = pytest.mark.models
gnn = pytest.importorskip("torch_geometric.nn", reason="needs torch_geometric: pip install bpfree[models]")

NODES, FEATURES, CLASSES = 24, 6, 4


def graph():
    """A ring with chords, features that tell the classes apart, and the nodes whose class is known."""
    generator = torch.Generator().manual_seed(4)
    start = torch.arange(NODES)
    pairs = torch.stack([start, (start + 1) % NODES]), torch.stack([start[::5], (start[::5] + 9) % NODES])
    one_way = torch.cat(pairs, dim=1)
    y = start * CLASSES // NODES
    x = torch.randn(CLASSES, FEATURES, generator=generator)[y] + 0.3 * torch.randn(NODES, FEATURES, generator=generator)
    return x, torch.cat([one_way, one_way.flip(0)], dim=1), y, start % 3 != 0


X, EDGES, Y, KNOWN = graph()


def subject(dropout=0.0, net=None, **options):
    """The loss is taken where the class is known, and a target is given there alone."""

    def build():
        torch.manual_seed(2)
        return (net or gnn.models.GCN)(FEATURES, 16, 3, CLASSES, dropout=dropout, **options)

    def output(model):
        return model(X.to(torch.get_default_dtype()), EDGES)

    onehot = F.one_hot(Y, CLASSES) * KNOWN[:, None].float()
    return Subject(build, output, lambda model: F.cross_entropy(output(model)[KNOWN], Y[KNOWN]), onehot)


@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.Shallow()], ids=str)
@pytest.mark.parametrize("net", ["GCN", "GAT", "GraphSAGE"])
def test_a_rule_trains_it_and_leaves_no_trace(rule, net):
    assert_rule_serves(subject(0.1, getattr(gnn.models, net)), rule)


def test_random_target_projection_trains_it_and_leaves_no_trace():
    assert_rule_serves(subject(0.1), bpfree.DRTP())


def test_one_activation_module_serves_several_layers():
    case = subject()
    model = case.build()
    attachment = case.attach(model, bpfree.DFA())
    case.gradients(model, attachment)
    assert [(site.name, site.batch, site.features) for site in attachment.mechanism.sites] == [
        ("act", (NODES,), (16,)),
        ("act#2", (NODES,), (16,)),
    ]


def test_gradients_are_those_of_the_dense_graph_convolution(double):
    case = subject()
    model = case.build()
    names = [name for name, _ in model.named_parameters()]
    parameters = dict(zip(names, [p.detach().clone().requires_grad_() for p in model.parameters()], strict=True))
    attachment = case.attach(model, bpfree.DFA())
    found = case.gradients(model, attachment)

    A = torch.eye(NODES)
    A[EDGES[1], EDGES[0]] = 1
    scale = A.sum(1).rsqrt()
    A = scale[:, None] * A * scale
    hidden, x = [], X.double()
    for layer in range(3):
        weight, bias = parameters[f"convs.{layer}.lin.weight"], parameters[f"convs.{layer}.bias"]
        hidden.append(A @ x @ weight.T + bias)
        if layer < 2:
            hidden[-1] = hidden[-1].relu()
        x = hidden[-1].detach()
    error = softmax_error(hidden[-1], Y, KNOWN)
    signals = [error @ B for B in matrices(attachment)]
    expected = torch.autograd.grad(hidden, list(parameters.values()), [*signals, error])
    assert_same(found, expected)


def test_dropout_and_normalization_between_the_taps(double):
    case = subject(0.5, norm="batch_norm", act="tanh")
    twin, model = case.build(), case.build()
    attachment = case.attach(model, bpfree.DFA())
    found = case.gradients(model, attachment)

    (taps,) = cut(twin, ["act"])
    torch.manual_seed(11)
    output = case.output(twin)
    error = softmax_error(output, Y, KNOWN)
    signals = [error @ B for B in matrices(attachment)]
    expected = torch.autograd.grad([output, *taps.kept], list(twin.parameters()), [error, *signals])
    for ours, theirs in zip(found, expected, strict=True):
        # Absolute: batch normalization takes away the biases below it, whose gradients are zero but for rounding.
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert_equal(model.buffers(), twin.buffers())


def test_above_the_last_tap_gradients_are_backpropagations():
    case = subject(0.5)
    exact = case.gradients(case.build())
    model = case.build()
    found = case.gradients(model, case.attach(model, bpfree.DFA()))
    names = [name for name, _ in model.named_parameters()]
    last = [index for index, name in enumerate(names) if name.startswith("convs.2")]
    assert len(last) == 2
    assert_equal([found[index] for index in last], [exact[index] for index in last])
    assert not torch.allclose(found[0], exact[0])


def test_feedback_alignment_serves_its_linear_layers(double):
    # torch_geometric.nn.Linear is not an nn.Linear. With B = W the way back is backpropagation's.
    case = subject()
    exact = case.gradients(case.build())
    model = case.build()
    attachment = case.attach(model, bpfree.FA())
    random = [gradient.clone() for gradient in case.gradients(model, attachment)]
    assert list(attachment.feedback) == ["convs.1.lin", "convs.2.lin"]
    assert not torch.allclose(random[0], exact[0])
    for name in attachment.feedback:
        attachment.feedback[name].copy_(model.get_submodule(name).weight)
    assert_same(case.gradients(model, attachment), exact)


@pytest.mark.parametrize("rule", [bpfree.KolenPollack(), bpfree.WeightMirror()], ids=str)
def test_backward_weights_that_learn_serve_them_too(rule):
    assert_rule_serves(subject(), rule)
