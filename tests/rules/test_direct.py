"""Direct rules against forms written out by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from support.by_hand import TanhMLP, assert_same, scale, softmax_error

WIDTHS = (7, 12, 9)
CLASSES = 4
NORMALIZATIONS = ("launay2019", "launay2020", "launay2020-code", "none")


@pytest.fixture
def mlp(double):
    sizes = (6, *WIDTHS)
    layers = [part for pair in zip(sizes, WIDTHS, strict=False) for part in (nn.Linear(*pair), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(WIDTHS[-1], CLASSES))


@pytest.fixture
def batch(double):
    return torch.randn(10, 6), torch.randint(0, CLASSES, (10,))


def train_step(model, batch, attachment=None):
    x, y = batch
    if attachment is not None:
        attachment.targets(y)
    F.cross_entropy(model(x), y).backward()
    return [parameter.grad for parameter in model.parameters()]


def matrices(attachment, feedback, widths=WIDTHS, taps=("1", "3", "5")):
    """B_l from the stored U by the printed formulas."""
    U = [attachment.feedback["shared" if feedback.shared else f"{t}:{w}"] for t, w in zip(taps, widths, strict=True)]
    factors = [scale(feedback.normalization, width, max(widths), CLASSES) for width in widths]
    return [factor * matrix[:, :width] for factor, matrix, width in zip(factors, U, widths, strict=True)]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_dfa_is_the_form_written_out(mlp, batch, normalization, shared, reduction):
    feedback = bpfree.Feedback(normalization=normalization, shared=shared)
    attachment = bpfree.attach(mlp, bpfree.DFA(feedback=feedback, reduction=reduction), seed=3)
    hand = TanhMLP(mlp)
    found = train_step(mlp, batch)

    hidden, output = hand.forward(batch[0])
    e = softmax_error(output, batch[1])
    sent = e * len(e) if reduction == "sum" else e
    signals = [sent @ B for B in matrices(attachment, feedback)]
    assert_same(found, hand.gradients(hidden, e, signals))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["sign", "ternary", "drtp"])
def test_quantized_errors_and_targets(mlp, batch, kind, reduction):
    rule = (
        bpfree.DRTP(reduction=reduction)
        if kind == "drtp"
        else bpfree.DFA(error=kind, reduction=reduction, threshold=0.3)
    )
    attachment = bpfree.attach(mlp, rule)
    hand = TanhMLP(mlp)
    found = train_step(mlp, batch, attachment)

    x, y = batch
    hidden, output = hand.forward(x)
    e = softmax_error(output, y)
    per_sample = e * len(e)
    vector = {
        "sign": torch.where(e > 0, 1.0, -1.0),
        "ternary": (per_sample > 0.3).double() - (per_sample < -0.3).double(),
        "drtp": torch.eye(CLASSES)[y],
    }[kind]
    if kind == "ternary":
        assert 0 < (vector == 0).double().mean() < 1, "the threshold should matter in this test"
    sent = vector if reduction == "sum" else vector / len(e)
    signals = [sent @ B for B in matrices(attachment, bpfree.Feedback())]
    assert_same(found, hand.gradients(hidden, e, signals))


def test_shallow_leaves_every_gradient_below_the_last_tap_none(mlp, batch):
    bpfree.attach(mlp, bpfree.Shallow())
    hand = TanhMLP(mlp)
    found = train_step(mlp, batch)
    hidden, output = hand.forward(batch[0])
    e = softmax_error(output, batch[1])
    assert found[:-2] == [None] * 6
    assert_same(found[-2:], [e.T @ hidden[-1], e.sum(0)])


def test_dfa_with_the_true_jacobian_of_a_linear_top_is_backpropagation(mlp, batch):
    # One tap below a linear output: dL/dh = e W exactly, so feedback W makes DFA and BP the same.
    model = mlp[-2:]
    lower = nn.Sequential(nn.Linear(6, WIDTHS[-1]), *model)
    exact = [g.clone() for g in train_step(lower, batch)]
    lower.zero_grad()
    W = lower[2].weight.detach()
    bpfree.attach(lower, bpfree.DFA(feedback=lambda error, sites: [error @ W]))
    assert_same(train_step(lower, batch), exact)


class ConvNet(nn.Module):
    """conv(3x3) - relu - conv(2x2, stride 2) - tanh - flatten - linear."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = (
            nn.Conv2d(2, 3, 3),
            nn.Conv2d(3, 4, 2, stride=2),
            nn.Linear(16, CLASSES),
        )
        self.relu, self.tanh = nn.ReLU(inplace=True), nn.Tanh()

    def forward(self, x):
        return self.head(self.tanh(self.two(self.relu(self.one(x)))).flatten(1))


def patches(x, size, stride):
    """(N, positions, C size size): the windows that a convolution looks at, by indexing alone."""
    out = (x.shape[2] - size) // stride + 1
    rows = [
        x[:, :, i * stride : i * stride + size, j * stride : j * stride + size].flatten(1)
        for i in range(out)
        for j in range(out)
    ]
    return torch.stack(rows, dim=1)


def test_dfa_on_a_convolutional_net(double):
    net = ConvNet()
    x, y = torch.randn(5, 2, 6, 6), torch.randint(0, CLASSES, (5,))
    attachment = bpfree.attach(net, bpfree.DFA(), seed=1)
    F.cross_entropy(net(x), y).backward()

    W1, W2, W3 = (layer.weight.detach().flatten(1) for layer in (net.one, net.two, net.head))
    b1, b2, b3 = (layer.bias.detach() for layer in (net.one, net.two, net.head))
    p1 = patches(x, 3, 1)
    h1 = (p1 @ W1.T + b1).clamp_min(0)  # (N, 16, 3)
    p2 = patches(h1.transpose(1, 2).reshape(5, 3, 4, 4), 2, 2)
    h2 = torch.tanh(p2 @ W2.T + b2)  # (N, 4, 4)
    flat = h2.transpose(1, 2).reshape(5, 16)
    e = softmax_error(flat @ W3.T + b3, y)
    U = attachment.feedback["shared"]
    assert U.shape == (CLASSES, 48)
    d1 = (e @ U / 48**0.5).reshape(5, 3, 16).transpose(1, 2) * (h1 > 0)
    d2 = (e @ U[:, :16] / 16**0.5).reshape(5, 4, 4).transpose(1, 2) * (1 - h2**2)
    expected = [
        torch.einsum("npo,npi->oi", d1, p1).reshape(net.one.weight.shape),
        d1.sum((0, 1)),
        torch.einsum("npo,npi->oi", d2, p2).reshape(net.two.weight.shape),
        d2.sum((0, 1)),
        e.T @ flat,
        e.sum(0),
    ]
    assert_same([parameter.grad for parameter in net.parameters()], expected)


class Residual(nn.Module):
    """h <- tap(h + tanh(W h)), three times: the cut is on both branches."""

    def __init__(self, cut_sum=True):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.taps = nn.ModuleList(bpfree.Tap() for _ in range(3))
        self.head = nn.Linear(6, CLASSES)
        self.cut_sum = cut_sum

    def forward(self, h):
        for layer, tap in zip(self.layers, self.taps, strict=True):
            branch = torch.tanh(layer(h))
            h = tap(h + branch) if self.cut_sum else h + tap(branch)
        return self.head(h)


@pytest.mark.parametrize("cut_sum", [True, False])
def test_dfa_on_a_residual_net(batch, cut_sum):
    net = Residual(cut_sum)
    attachment = bpfree.attach(net, bpfree.DFA(), seed=2)
    x, y = batch
    F.cross_entropy(net(x), y).backward()

    hidden, slopes = [x], []
    for layer in net.layers:
        branch = torch.tanh(hidden[-1] @ layer.weight.detach().T + layer.bias.detach())
        slopes.append(1 - branch**2)
        hidden.append(hidden[-1] + branch)
    W = net.head.weight.detach()
    e = softmax_error(hidden[-1] @ W.T + net.head.bias.detach(), y)
    # One matrix for three equal widths. The cut on the branch alone leaves the skip path open, but nothing that
    # learns lies on it below a tap: each layer still gets e B, once.
    d = e @ attachment.feedback["shared"] / 6**0.5
    expected = []
    for slope, below in zip(slopes, hidden, strict=False):
        expected += [(d * slope).T @ below, (d * slope).sum(0)]
    expected += [e.T @ hidden[-1], e.sum(0)]
    assert_same([parameter.grad for parameter in net.parameters()], expected)


class Unrolled(nn.Module):
    """h <- tanh(W h), three times with one layer and one tap."""

    def __init__(self):
        super().__init__()
        self.layer, self.tanh, self.head = nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, CLASSES)

    def forward(self, h):
        for _ in range(3):
            h = self.tanh(self.layer(h))
        return self.head(h)


@pytest.mark.parametrize("shared", [True, False])
def test_a_tap_reached_three_times_is_three_taps_with_one_feedback(batch, shared):
    net = Unrolled()
    attachment = bpfree.attach(net, bpfree.DFA(feedback=bpfree.Feedback(shared=shared)))
    x, y = batch
    F.cross_entropy(net(x), y).backward()
    assert [site.name for site in attachment.mechanism.sites] == ["tanh", "tanh#2", "tanh#3"]
    assert len(attachment.feedback) == 1

    W, b = net.layer.weight.detach(), net.layer.bias.detach()
    hidden = [x]
    for _ in range(3):
        hidden.append(torch.tanh(hidden[-1] @ W.T + b))
    e = softmax_error(hidden[-1] @ net.head.weight.detach().T + net.head.bias.detach(), y)
    d = e @ attachment.feedback["shared" if shared else "tanh:6"] / 6**0.5
    deltas = [d * (1 - h**2) for h in hidden[1:]]
    expected = sum(delta.T @ below for delta, below in zip(deltas, hidden, strict=False))
    assert_same([net.layer.weight.grad, net.layer.bias.grad], [expected, sum(delta.sum(0) for delta in deltas)])


def test_sequences_share_the_matrix_over_tokens(double):
    # (B, T, d) with an error (B, T, c): each token is a row, as if the batch were B T samples.
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    x, y = torch.randn(3, 5, 6), torch.randint(0, CLASSES, (3, 5))
    attachment = bpfree.attach(net, bpfree.DFA())
    F.cross_entropy(net(x).flatten(0, 1), y.flatten()).backward()
    assert attachment.mechanism.sites[0].batch == (3, 5)
    hand = TanhMLP(net)
    hidden, output = hand.forward(x.flatten(0, 1))
    e = softmax_error(output, y.flatten())
    expected = hand.gradients(hidden, e, [e @ attachment.feedback["shared"] / 8**0.5])
    assert_same([parameter.grad for parameter in net.parameters()], expected)


def test_batch_dims_can_be_said(double):
    # The same net with one batch dimension: a tap has 5 x 8 features and the error 5 x 4 numbers.
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    attachment = bpfree.attach(net, bpfree.DFA(), batch_dims=1, example_inputs=torch.randn(3, 5, 6))
    assert attachment.feedback["shared"].shape == (20, 40)


def test_what_lies_above_error_at_is_exact(mlp, batch):
    exact = [g.clone() for g in train_step(mlp, batch)]
    mlp.zero_grad()
    attachment = bpfree.attach(mlp, bpfree.DFA(), taps=["1"], error_at="4")
    found = train_step(mlp, batch)
    assert_same(found[2:], exact[2:])  # layer 2 and 4 lie above the tap, exact; layer 0 is not
    hand = TanhMLP(mlp)
    hidden, output = hand.forward(batch[0])
    signals = hand.layerwise_signals(hidden, softmax_error(output, batch[1]), hand.weights)
    error = signals[-1] * (1 - hidden[-1] ** 2)  # dL/da of layer 4, where the error is taken
    U = attachment.feedback["shared"]
    assert U.shape == (WIDTHS[-1], WIDTHS[0])
    delta = error @ U / WIDTHS[0] ** 0.5 * (1 - hidden[1] ** 2)
    assert_same(found[:1], [delta.T @ hidden[0]])


def test_a_model_that_ends_in_a_tap_keeps_its_exact_output_layer(double):
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES), nn.Sigmoid())
    x, y = torch.randn(7, 6), torch.rand(7, CLASSES)
    F.binary_cross_entropy(net(x), y).backward()
    exact = net[2].weight.grad.clone()
    net.zero_grad()
    bpfree.attach(net, bpfree.DFA(), error_at="")
    F.binary_cross_entropy(net(x), y).backward()
    assert_same([net[2].weight.grad], [exact])


def test_micro_batches_add_up_to_the_full_batch(mlp, batch):
    attachment = bpfree.attach(mlp, bpfree.DFA())
    whole = [g.clone() for g in train_step(mlp, batch, attachment)]
    mlp.zero_grad()
    x, y = batch
    for part in (slice(0, 5), slice(5, 10)):
        (F.cross_entropy(mlp(x[part]), y[part]) / 2).backward()
    assert_same([parameter.grad for parameter in mlp.parameters()], whole)


def test_two_forward_passes_before_one_backward(mlp, batch):
    # Each pass has a record of its own: the sum of two losses learns as two steps do.
    attachment = bpfree.attach(mlp, bpfree.DFA())
    whole = [2 * g for g in train_step(mlp, batch, attachment)]
    mlp.zero_grad()
    x, y = batch
    losses = [F.cross_entropy(mlp(x), y) for _ in range(2)]
    sum(losses).backward()
    assert_same([parameter.grad for parameter in mlp.parameters()], whole)


def test_autograd_forms_no_gradient_between_segments(mlp, batch):
    from torch.utils.flop_counter import FlopCounterMode

    x, y = batch
    n = len(x)
    bpfree.attach(mlp, bpfree.DFA(), example_inputs=x)
    loss = F.cross_entropy(mlp(x), y)
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    shapes = [(6, 7), (7, 12), (12, 9), (9, CLASSES)]
    weight_gradients = sum(2 * n * a * b for a, b in shapes)
    projections = sum(2 * n * CLASSES * width for width in WIDTHS)
    assert counter.get_total_flops() == weight_gradients + projections
