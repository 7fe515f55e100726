"""Networks on graphs: the layers against torch_geometric's own, dense algebra, and the compiled spline extension."""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck

import bpfree
from bpfree.lab.errors import SettingsError
from bpfree.lab.settings.model import ModelSettings

pytestmark = pytest.mark.models
gnn = pytest.importorskip("torch_geometric.nn", reason="needs torch_geometric: pip install bpfree[graphs]")

from bpfree.lab.models.graphs import attention, layers, sparse  # noqa: E402

N, FEATURES, CLASSES = 20, 9, 3


@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def graph() -> tuple[Tensor, Tensor, Tensor]:
    """Sparse features, edges in both directions with one node left alone, and classes."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(N, FEATURES, generator=generator) * (torch.rand(N, FEATURES, generator=generator) < 0.3)
    start = torch.arange(N - 1)
    one_way = torch.cat([torch.stack([start[:-1], start[1:]]), torch.stack([start[:6], start[:6] + 9])], dim=1)
    edges = torch.cat([one_way, one_way.flip(0)], dim=1).unique(dim=1)
    return x.to_sparse_csr(), edges, torch.arange(N) % CLASSES


def assert_same(ours: nn.Module, theirs: nn.Module, x: Tensor, edges: Tensor) -> None:
    """The same output, and gradients of weights and dense features."""
    theirs.load_state_dict(ours.state_dict())
    dense = x.to_dense().detach().requires_grad_()
    found, expected = ours(x, edges), theirs(dense, edges)
    torch.testing.assert_close(found, expected)
    weight = torch.randn(expected.shape)
    pairs = zip(
        torch.autograd.grad((found * weight).sum(), list(ours.parameters())),
        torch.autograd.grad((expected * weight).sum(), list(theirs.parameters()), retain_graph=True),
        strict=True,
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other)
    if ours(dense, edges).requires_grad:
        (one,) = torch.autograd.grad((ours(dense, edges) * weight).sum(), dense)
        (other,) = torch.autograd.grad((expected * weight).sum(), dense)
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda: layers.GCNConv(FEATURES, 5), lambda: gnn.GCNConv(FEATURES, 5)),
        *((lambda K=K: layers.ChebConv(FEATURES, 5, K), lambda K=K: gnn.ChebConv(FEATURES, 5, K)) for K in range(1, 6)),
        (lambda: attention.GATConv(FEATURES, 4, 3), lambda: gnn.GATConv(FEATURES, 4, 3)),
    ],
    ids=["GCN", *(f"Cheb {K}" for K in range(1, 6)), "GAT"],
)
def test_layers_are_torch_geometrics(ours, theirs) -> None:
    x, edges, _ = graph()
    torch.manual_seed(0)
    assert_same(ours(), theirs(), x, edges)


@pytest.mark.parametrize(("layers_below", "heads", "groups"), [(1, 2, 1), (3, 4, 8), (2, 8, 16), (2, 9, 9)])
def test_dna_is_torch_geometrics(layers_below: int, heads: int, groups: int) -> None:
    torch.manual_seed(0)
    _, edges, _ = graph()
    channels = 36 if heads == 9 else 32
    ours, theirs = attention.DNAConv(channels, heads, groups), gnn.DNAConv(channels, heads, groups)
    assert_same(ours, theirs, torch.randn(N, layers_below, channels), edges)


# What spline_basis and spline_weighting of torch_spline_conv 1.2.2, compiled, give for the test below (degree 1, open
# spline); rounded to 6 digits.
EXTENSION = {
    2: [
        [-0.06, -0.28, 0.16], [-0.05, -0.166, 0.114], [-0.02, -0.065, 0.055], [0.05, 0.01, -0.03],
        [0.172, 0.06, -0.14], [0.335, 0.085, -0.275], [0.58, 0.06, -0.46],
    ],
    3: [
        [-0.06, -0.28, 0.16], [-0.08, -0.152, 0.128], [-0.06, -0.05, 0.07], [0.04, 0.0, -0.04],
        [0.2, 0.0, -0.09], [0.31, -0.05, 0.085], [0.32, -0.2, 0.71],
    ],
    5: [
        [-0.06, -0.28, 0.16], [-0.14, -0.124, 0.156], [-0.14, -0.02, 0.1], [0.02, -0.02, 0.05],
        [0.08, -0.12, 0.23], [0.04, -0.32, 0.31], [-0.2, 0.71, 0.19],
    ],
}  # fmt: skip


@pytest.mark.parametrize("size", EXTENSION)
def test_splines_are_those_of_the_compiled_extension(size: int) -> None:
    u = torch.tensor([0, 0.1, 0.25, 0.5, 0.6, 0.75, 1])
    x = torch.arange(14.0).reshape(7, 2) / 10 - 0.6
    W = (torch.arange(size * 6) * 7 % 11).reshape(size, 2, 3) / 10 - 0.4
    found = torch.einsum("ek,ei,kio->eo", layers.spline_basis(u, size), x, W)
    torch.testing.assert_close(found, torch.tensor(EXTENSION[size]), atol=2e-6, rtol=0)


def test_the_spline_basis_adds_up_to_one_and_goes_in_straight_lines() -> None:
    u = torch.linspace(0, 1, 13)
    for size in (2, 3, 5):
        basis = layers.spline_basis(u, size)
        torch.testing.assert_close(basis.sum(1), torch.ones(13))
        # Interpolation of a line through the control points is the line.
        torch.testing.assert_close(basis @ torch.linspace(2, 5, size), 2 + 3 * u)
        assert (basis > 0).sum(1).max() == 2
        assert torch.equal(layers.spline_basis(torch.linspace(0, 1, size), size), torch.eye(size))


def test_spline_convolution_edge_by_edge() -> None:
    torch.manual_seed(0)
    x, edges, _ = graph()
    conv = layers.SplineConv(FEATURES, 4, kernel_size=3)
    indegree = [sum(int(target) == node for target in edges[1]) for node in range(N)]
    dense, expected = x.to_dense(), []
    for node in range(N):
        own = conv.lin.weight @ dense[node] + conv.bias
        came = [int(a) for a, b in edges.T if int(b) == node]
        for other in came:
            place = 2 * indegree[node] / max(indegree)
            low = min(int(place), 1)
            W = (1 - (place - low)) * conv.lins[low].weight + (place - low) * conv.lins[low + 1].weight
            own = own + W @ dense[other] / len(came)
        expected.append(own)
    torch.testing.assert_close(conv(x, edges), torch.stack(expected))


# -- sparse products ---------------------------------------------------------------------------------------------------


def pattern() -> tuple[sparse.Pattern, Tensor]:
    where = torch.rand(6, 8, generator=torch.Generator().manual_seed(1)) < 0.4
    return sparse.Pattern(*where.nonzero().T, (6, 8)), where


def test_products_and_scores_are_those_of_dense_matrices() -> None:
    at, where = pattern()
    torch.manual_seed(0)
    values, v, left, right = (torch.randn(*s) for s in ((int(where.sum()),), (8, 3), (6, 4), (8, 4)))
    dense = torch.zeros(6, 8)
    dense[where] = values
    torch.testing.assert_close(at.product(values, v), dense @ v)
    torch.testing.assert_close(at.scores(left, right), (left @ right.T)[where])
    assert torch.equal(at.rows(), where.nonzero()[:, 0])


def test_their_derivatives_in_both_directions() -> None:
    at, where = pattern()
    torch.manual_seed(0)
    values, v, left, right = (
        torch.randn(*s, requires_grad=True) for s in ((int(where.sum()),), (8, 3), (6, 4), (8, 4))
    )
    assert gradcheck(at.product, (values, v), check_forward_ad=True)
    assert gradcheck(at.scores, (left, right), check_forward_ad=True)
    for inputs in ((values.detach(), v), (values, v.detach())):
        assert gradcheck(at.product, inputs, check_forward_ad=True)


def test_values_at_one_place_add_up() -> None:
    places = torch.tensor([[0, 1, 0], [2, 0, 2]])
    made = sparse.Sparse.at(places, torch.tensor([1.0, 2.0, 3.0]), (2, 3))
    torch.testing.assert_close(made @ torch.eye(3), torch.tensor([[0.0, 0.0, 4.0], [2.0, 0.0, 0.0]]))


def test_what_is_remembered_dies_with_its_tensor() -> None:
    x, edges, _ = graph()
    assert sparse.Sparse.of(x) is sparse.Sparse.of(x)
    assert layers.normalized(edges, N) is layers.normalized(edges, N)
    before = len(sparse._KNOWN)
    dropped = layers.dropout(x, 0.5, True)
    assert len(sparse._KNOWN) == before + 1
    del x, dropped
    gc.collect()
    assert len(sparse._KNOWN) == before - 1


def test_dropout_of_sparse_features() -> None:
    torch.manual_seed(0)
    x = torch.ones(100, 100).to_sparse_csr()
    dropped = layers.dropout(x, 0.3, True).to_dense()
    assert set(dropped.unique().tolist()) == {0.0, 1 / 0.7}
    assert abs(float((dropped > 0).double().mean()) - 0.7) < 4 * math.sqrt(0.21 / 10_000)
    assert layers.dropout(x, 0.3, False) is x
    assert layers.dropout(x, 0.0, True) is x
    assert torch.equal(layers.dropout(x.to_dense(), 0.3, False), torch.ones(100, 100))
    # The product and its gradient see the same values.
    kept = layers.dropout(x, 0.3, True)
    lin = layers.Linear(100, 2, bias=False)
    torch.testing.assert_close(lin(kept), kept.to_dense() @ lin.weight.T)
    (gradient,) = torch.autograd.grad(lin(kept).sum(), lin.weight)
    torch.testing.assert_close(gradient, kept.to_dense().sum(0).expand(2, -1))


# -- networks ----------------------------------------------------------------------------------------------------------

NETS = ["ChebNet", "GCN", "SplineNet", "GAT", "DNA"]
SMALL = {"DNA": {"hidden": 16, "layers": 2, "heads": 2, "groups": 2}}


def net(name: str, **arguments) -> nn.Module:
    torch.manual_seed(0)
    return ModelSettings(name, SMALL.get(name, {}) | arguments).build((FEATURES,), CLASSES)


@pytest.mark.parametrize("name", NETS)
def test_networks_give_logarithms_of_probabilities(name: str) -> None:
    x, edges, _ = graph()
    model = net(name).eval()
    output = model(x, edges)
    assert output.shape == (N, CLASSES)
    torch.testing.assert_close(output.exp().sum(1), torch.ones(N))
    torch.testing.assert_close(output, model(x.to_dense(), edges))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.FDFA(), bpfree.FA(), bpfree.Shallow(), bpfree.DRTP()], ids=str)
def test_every_kind_of_rule_trains_them(name: str, rule: bpfree.Rule) -> None:
    x, edges, y = graph()
    model, settings = net(name), ModelSettings(name, SMALL.get(name, {}))
    taps, at = settings.suggestion("taps"), settings.suggestion("error_at") or ""
    with bpfree.attach(model, rule, taps=taps, error_at=at, seed=0) as attachment:
        for _ in range(2):
            model.zero_grad()
            attachment.targets(y)
            F.nll_loss(model(x, edges), y).backward()
    learned = {weight: parameter.grad is not None for weight, parameter in model.named_parameters()}
    above = "lin2" if name == "DNA" else "conv2"
    expected = {weight: weight.startswith(above) or rule != bpfree.Shallow() for weight in learned}
    assert learned == expected


def test_dfas_gradient_of_a_graph_network_by_hand() -> None:
    x, edges, y = graph()
    known = torch.arange(N) < 8
    model = net("GCN", dropout=0.0)
    feedback = bpfree.Feedback(normalization="launay2020-code")
    with bpfree.attach(model, bpfree.DFA(feedback=feedback), taps=["dropout"], error_at="conv2", seed=0) as attachment:
        F.nll_loss(model(x, edges)[known], y[known]).backward()
        B = attachment.feedback["shared"] / 4  # the square root of 16
    A = torch.eye(N)
    A[edges[1], edges[0]] = 1
    A = A / torch.sqrt(A.sum(1)[:, None] * A.sum(0))
    a = A @ x.to_dense() @ model.conv1.lin.weight.T + model.conv1.bias
    logits = A @ a.relu() @ model.conv2.lin.weight.T + model.conv2.bias
    e = (logits.softmax(1) - F.one_hot(y, CLASSES)) * known[:, None] / 8
    d = (e @ B) * (a > 0)
    torch.testing.assert_close(model.conv1.lin.weight.grad, (A @ x.to_dense()).T.matmul(d).T)
    torch.testing.assert_close(model.conv1.bias.grad, d.sum(0))
    torch.testing.assert_close(model.conv2.lin.weight.grad, e.T @ A @ a.relu())


def test_the_error_of_dna_is_the_negative_target() -> None:
    x, edges, y = graph()
    model = net("DNA", dropout=0.0, attention_dropout=0.0)
    seen: list[Tensor] = []

    def project(error: Tensor, sites) -> list[None]:
        seen.append(error)
        return [None] * len(sites)

    with bpfree.attach(model, bpfree.DFA(feedback=project), taps=["acts.*"], error_at="", seed=0) as attachment:
        F.nll_loss(model(x, edges), y).backward()
        assert [site.name for site in attachment.mechanism.sites] == ["acts.0", "acts.1", "acts.2"]
    torch.testing.assert_close(seen[0], -F.one_hot(y, CLASSES).double() / N)


def test_cutting_the_stack_changes_backpropagation_alone() -> None:
    x, edges, y = graph()

    def gradients(rule: bpfree.Rule, cut: bool) -> list[Tensor]:
        model = net("DNA", dropout=0.0, attention_dropout=0.0, cut_stack=cut)
        with bpfree.attach(model, rule, taps=["acts.*"], error_at="", seed=0):
            F.nll_loss(model(x, edges), y).backward()
        return [weight.grad for weight in model.parameters()]

    for one, other in zip(gradients(bpfree.DFA(), True), gradients(bpfree.DFA(), False), strict=True):
        assert torch.equal(one, other)
    whole, cut = gradients(bpfree.BP(), False), gradients(bpfree.BP(), True)
    assert not torch.allclose(whole[0], cut[0])
    torch.testing.assert_close(whole[-1], cut[-1])


@pytest.mark.parametrize(("name", "weights"), [
    ("GCN", 1433 * 16 + 16 + 16 * 7 + 7),
    ("ChebNet", 2 * 1433 * 16 + 16 + 2 * 16 * 7 + 7),
    ("SplineNet", 3 * 1433 * 16 + 16 + 3 * 16 * 7 + 7),
    ("GAT", 1433 * 64 + 64 + 2 * 64 + 64 * 7 + 7 + 2 * 7),
    ("DNA", 1433 * 128 + 128 + 5 * 3 * (16 * 8 * 8 + 128) + 128 * 7 + 7),
    ("GraphEncoder", 1433 * 32 + 32 + 32 * 16 + 16),
])  # fmt: skip
def test_sizes_of_the_published_networks(name: str, weights: int) -> None:
    model = ModelSettings(name).build((1433,), 7)
    assert sum(weight.numel() for weight in model.parameters()) == weights


def test_a_network_on_graphs_is_told_of_pictures() -> None:
    with pytest.raises(SettingsError, match=r"nodes with features of shape \(features,\)"):
        ModelSettings("GCN").build((1, 8, 8), 4)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("DNA", {"hidden": 100}, "heads and groups must divide hidden"),
        ("DNA", {"hidden": 24, "heads": 4, "groups": 6}, "the smaller of the two the larger"),
        ("ChebNet", {"polynomials": 0}, "polynomials=0: one at least"),
        ("SplineNet", {"kernel_size": 1}, "kernel_size=1: two at least"),
    ],
)
def test_arguments_that_mean_nothing(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ModelSettings(name, arguments).build((30,), 3)


def test_forward_derivatives_reach_through_the_second_convolution() -> None:
    _, edges, _ = graph()
    conv, h, v = layers.GCNConv(4, 3), torch.randn(N, 4), torch.randn(N, 4)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(conv(forward_ad.make_dual(h, v), edges)).tangent
    step = 1e-6
    torch.testing.assert_close(tangent, (conv(h + step * v, edges) - conv(h - step * v, edges)) / (2 * step))
