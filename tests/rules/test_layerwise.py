"""Layerwise rules: with B := W they are backpropagation; with another B, what is written out by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import bpfree
from support.by_hand import TanhMLP, assert_same, softmax_error


def set_feedback(attachment, model):
    for name in attachment.feedback:
        attachment.feedback[name].copy_(model.get_submodule(name).weight)


def gradients(model, x):
    model.zero_grad()
    model(x).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


LAYERS = {
    "linear": (lambda: nn.Linear(6, 8), (5, 6)),
    "linear, tokens": (lambda: nn.Linear(6, 8), (5, 3, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3), (2, 4, 7, 8)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 2, 4, 5, 4)),
    "strided": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 8)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 7, 7)),
    "dilated": (lambda: nn.Conv2d(4, 6, (3, 2), dilation=(2, 1)), (2, 4, 9, 8)),
    "depthwise, no bias": (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), (2, 4, 7, 7)),
    "same": (lambda: nn.Conv2d(4, 6, (2, 4), padding="same"), (2, 4, 7, 7)),
    "valid": (lambda: nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 7, 7)),
    "circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 7, 7)),
    "reflect": (lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="reflect"), (2, 4, 9)),
    "conv2d, no batch": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 7, 8)),
    "conv1d, reflect, no batch": (lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="reflect"), (4, 9)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 9)),
    "transposed 2d": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        (2, 4, 5, 5),
    ),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 3, 2, dilation=2), (2, 2, 4, 4, 4)),
    "transposed, no batch": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 6)),
    # As much is added to the output as the stride: a plain convolution of it has a place more than the input.
    "transposed, wide output": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=(1, 2), dilation=3, output_padding=(1, 2)),
        (2, 4, 5, 6),
    ),
}


# torch warns that an even kernel with padding="same" may copy its input: that is the case to be served here.
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("inplace", [False, True])
def test_with_b_equal_to_w_every_layer_is_backpropagation(double, kind, inplace):
    make, shape = LAYERS[kind]
    # Something that learns below, so that the layer's input needs a gradient; a non-linearity that may be in place.
    model = nn.Sequential(nn.Linear(shape[-1], shape[-1]), make(), nn.ELU(inplace=inplace))
    x = torch.randn(shape)
    exact = gradients(model, x)
    attachment = bpfree.attach(model, bpfree.FA(), example_inputs=x)
    assert list(attachment.feedback) == ["1"], "the first layer's input needs no gradient, so it has no B"
    random = gradients(model, x)
    assert not torch.allclose(random[0], exact[0]), "with a random B the layer below must learn differently"
    set_feedback(attachment, model)
    assert_same(gradients(model, x), exact)


@pytest.fixture
def mlp(double):
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 4))


@pytest.fixture
def batch(double):
    return torch.randn(10, 6), torch.randint(0, 4, (10,))


def step(model, batch):
    x, y = batch
    F.cross_entropy(model(x), y).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def expected(model, batch, backward_weights):
    hand = TanhMLP(model)
    hidden, output = hand.forward(batch[0])
    e = softmax_error(output, batch[1])
    return hand.gradients(hidden, e, hand.layerwise_signals(hidden, e, [None, *backward_weights]))


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_feedback_alignment_by_hand(mlp, batch, distribution):
    attachment = bpfree.attach(mlp, bpfree.FA(distribution))
    found = step(mlp, batch)
    assert_same(found, expected(mlp, batch, [attachment.feedback["2"], attachment.feedback["4"]]))


def test_uniform_sign_symmetry_by_hand(mlp, batch):
    initial = [mlp[2].weight.detach().clone(), mlp[4].weight.detach().clone()]
    deviations = [((W - W.mean()) ** 2).sum().div(W.numel() - 1).sqrt() for W in initial]
    bpfree.attach(mlp, bpfree.SignSymmetry("uniform"))
    step(mlp, batch)
    # The signs follow the weights, the magnitude stays that of the start.
    with torch.no_grad():
        mlp[2].weight.neg_().mul_(3)
        mlp.zero_grad()
    W = [mlp[2].weight.detach(), mlp[4].weight.detach()]
    assert_same(step(mlp, batch), expected(mlp, batch, [s * w.sign() for s, w in zip(deviations, W, strict=True)]))


def test_fixed_sign_symmetry_by_hand(mlp, batch):
    attachment = bpfree.attach(mlp, bpfree.SignSymmetry("fixed"))
    found = step(mlp, batch)
    M = [attachment.feedback["2"], attachment.feedback["4"]]
    assert all((m >= 0).all() for m in M)
    signs = [mlp[2].weight.detach().sign(), mlp[4].weight.detach().sign()]
    assert_same(found, expected(mlp, batch, [m * s for m, s in zip(M, signs, strict=True)]))


def test_batch_sign_symmetry_draws_anew_each_pass_and_keeps_signs():
    # A chain of one layer: the signal that arrives below is grad @ B, so B itself can be read off.
    layer = nn.Linear(5, 4, bias=False)
    below = nn.Linear(5, 5, bias=False)
    model = nn.Sequential(below, layer)
    bpfree.attach(model, bpfree.SignSymmetry("batch"))

    def read():
        x = torch.eye(5)
        rows = []
        for index in range(4):
            model.zero_grad()
            (model(x)[0, index]).backward()
            rows.append(below.weight.grad[:, 0].clone())  # d/dh of sample 0, whose x is the first unit vector
        return torch.stack(rows)

    first, second = read(), read()
    assert (first != second).all()
    assert torch.equal(first.sign(), layer.weight.sign())
    assert torch.equal(second.sign(), layer.weight.sign())


def test_magnitudes_have_the_layers_initial_deviation():
    # |M| of a normal M with deviation s has mean s sqrt(2/pi); uniform B has deviation s.
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(200, 200), nn.Linear(200, 200))
    s = float(model[1].weight.detach().std())
    x = torch.randn(3, 200)
    with bpfree.attach(model, bpfree.SignSymmetry("fixed"), example_inputs=x) as attachment:
        assert attachment.feedback["1"].mean() == pytest.approx(s * (2 / torch.pi) ** 0.5, rel=0.02)
    for distribution in ("uniform", "normal"):
        with bpfree.attach(model, bpfree.FA(distribution), example_inputs=x) as attachment:
            B = attachment.feedback["1"]
            assert B.std() == pytest.approx(s, rel=0.02)
            # Four deviations of the mean of 40,000 numbers.
            assert abs(float(B.mean())) < 4 * s / 200
            assert (B.abs().max() < 1.8 * s) == (distribution == "uniform")


def test_other_layers_pass_their_ordinary_gradient_and_are_named(double):
    model = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 4))
    attachment = bpfree.attach(model, bpfree.FA())
    x = torch.randn(3, 6)
    exact = None
    with attachment.paused():
        exact = gradients(model, x)
    gradients(model, x)
    set_feedback(attachment, model)
    assert_same(gradients(model, x), exact)
    assert "1 (LayerNorm)" in str(attachment)


def test_input_as_keyword(double):
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x):
            return self.two(input=self.one(input=x))

    model, x = Keyword(), torch.randn(3, 6)
    exact = gradients(model, x)
    attachment = bpfree.attach(model, bpfree.FA(), example_inputs=x)
    assert list(attachment.feedback) == ["two"]
    set_feedback(attachment, model)
    assert_same(gradients(model, x), exact)


class Plain(nn.Module):
    """x W^T with W (out, in); its input has a name of its own."""

    def __init__(self, first, second):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(first, second))

    def forward(self, values):
        return values @ self.weight.T


class Turned(Plain):
    """x W with W (in, out)."""

    def forward(self, values):
        return values @ self.weight


def test_linear_layers_of_ones_own_can_be_served(double):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.plain, self.turned = nn.Linear(6, 5), Plain(7, 5), Turned(7, 4)

        def forward(self, x):
            return self.turned(values=self.plain(self.stem(x).tanh()).tanh())

    with pytest.raises(bpfree.errors.UnsupportedLayerError, match=r"bpfree\.serve_layer"):
        bpfree.attach(nn.Sequential(Plain(3, 3)), bpfree.FA())
    bpfree.serve_layer(Plain)
    bpfree.serve_layer(Turned, transposed=True)  # derived from a served one, and told apart
    model, x = Net(), torch.randn(3, 6)
    exact = gradients(model, x)
    attachment = bpfree.attach(model, bpfree.FA(), example_inputs=x)
    assert list(attachment.feedback) == ["plain", "turned"]
    assert not torch.allclose(gradients(model, x)[0], exact[0])
    set_feedback(attachment, model)
    assert_same(gradients(model, x), exact)


class Headed(nn.Module):
    """Two layers above the place where the error is taken."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
        self.head = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize(
    ("rule", "options"), [(bpfree.FA(), {}), (bpfree.DFA(), {"within": bpfree.FA()})], ids=["alone", "within"]
)
def test_what_lies_above_the_error_learns_exactly(double, rule, options):
    torch.manual_seed(0)
    model, x, y = Headed(), torch.randn(8, 5), torch.randint(0, 3, (8,))
    run = {"plain": model, "checkpointed": lambda x: checkpoint(model, x, use_reentrant=False)}
    F.cross_entropy(model(x), y).backward()
    exact = [parameter.grad.clone() for parameter in model.parameters()]
    with bpfree.attach(model, rule, error_at="body", **options) as attachment:
        for forward in run.values():
            model.zero_grad()
            F.cross_entropy(forward(x), y).backward()
            found = [parameter.grad for parameter in model.parameters()]
            assert_same(found[2:], exact[2:])  # the second layer's error is exact too
            assert not torch.allclose(found[0], exact[0])
        assert "none: it lies above the error and learns exactly" in str(attachment)


def test_features_taken_in_between_change_nothing(double):
    torch.manual_seed(0)
    model, x, y = Headed(), torch.randn(8, 5), torch.randint(0, 3, (8,))
    bpfree.attach(model, bpfree.FA(), error_at="body")
    found = []
    for _ in range(2):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
        for _ in range(2):
            model.body(x)
    assert_same(*found)


def test_a_layer_below_and_above_the_error_is_served_below_alone(double):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again, self.norm = nn.Linear(5, 5), nn.Linear(5, 5), nn.Identity()

        def forward(self, x):
            return self.again(self.norm(self.again(self.first(x).tanh()).tanh()))

    torch.manual_seed(0)
    model, x = Shared(), torch.randn(8, 5)
    attachment = bpfree.attach(model, bpfree.FA(), error_at="norm")
    passes = [gradients(model, x) for _ in range(2)]
    assert_same(*passes)
    attachment.feedback["again"].copy_(model.again.weight.detach())
    with attachment.paused():
        exact = gradients(model, x)
    assert_same(gradients(model, x), exact)
    assert not torch.allclose(passes[0][0], exact[0])


@pytest.mark.parametrize(
    "rule", [bpfree.FA(), *(bpfree.SignSymmetry(magnitude) for magnitude in ("uniform", "fixed", "batch"))], ids=str
)
def test_layers_that_begin_at_zero_cut_nothing_off(rule):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1), nn.Linear(1, 1), nn.Linear(1, 3))
    nn.init.zeros_(model[4].weight)
    bpfree.attach(model, rule)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x, y = torch.randn(8, 5), torch.randint(0, 3, (8,))
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    below = model[0].weight.grad
    assert bool(below.isfinite().all())
    assert below.norm() > 0
