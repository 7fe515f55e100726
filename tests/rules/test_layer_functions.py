"""Layers that compute something else than their class: B stands in for W in the layer's own function, by hand.

A layer ``below`` learns from the signal at its output: its weight's gradient is that signal (x) the model's input.
"""

import warnings

import pytest
import torch
import torch.ao.nn.intrinsic.qat as intrinsic
import torch.ao.nn.qat as qat
import torch.nn.functional as F
from torch import nn
from torch.ao.quantization import get_default_qat_qconfig
from torch.nn.utils import parametrizations, prune

import bpfree
from support.by_hand import assert_same


class Net(nn.Module):
    """A layer on top of one that learns."""

    def __init__(self, layer, wide):
        super().__init__()
        self.below, self.layer = nn.Linear(wide, wide), layer

    def forward(self, x):
        return self.layer(self.below(x))


def signal(net, x, error):
    """The signal at the output of ``below``, ``(N, wide)``: read off its weight's gradient, for as many samples."""
    net.zero_grad()
    (net(x) * error).sum().backward()
    # dW = signal^T x, with x square and of full rank.
    return (net.below.weight.grad @ x.flatten(0, -2).inverse()).T


def attached(layer, rule=None, wide=6):
    net, x = Net(layer, wide), torch.randn(wide, wide)
    attachment = bpfree.attach(net, rule or bpfree.FA(), example_inputs=x)
    return net, x, attachment


def backward_weight(attachment):
    return attachment.feedback["layer"].clone()


class Masked(nn.Linear):
    def __init__(self, wide, out):
        super().__init__(wide, out)
        self.register_buffer("mask", torch.ones(out, wide))

    def forward(self, x):
        return F.linear(x, self.weight * self.mask, self.bias)


class Half(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 0.5


class Centred(nn.Linear):
    def forward(self, x):
        return F.linear(x, (self.weight - self.weight.mean(1, keepdim=True)) / self.weight.std(1, keepdim=True))


class Adapted(nn.Linear):
    """A frozen weight and an adapter that begins at zero."""

    def __init__(self, wide, out):
        super().__init__(wide, out)
        self.weight.requires_grad_(False)
        self.A, self.B = nn.Parameter(torch.randn(2, wide)), nn.Parameter(torch.zeros(out, 2))

    def forward(self, x):
        return super().forward(x) + x @ self.A.T @ self.B.T


class Switched(nn.Linear):
    """The plain map until an attribute says otherwise."""

    factor = 1.0

    def __init__(self, wide, out):
        super().__init__(wide, out)
        self.factor = 1.0

    def forward(self, x):
        return super().forward(x) * self.factor


def centred(B):
    return (B - B.mean(1, keepdim=True)) / B.std(1, keepdim=True)


@pytest.mark.parametrize(
    ("kind", "stands_in"),
    [(Half, lambda B, layer: B * 0.5), (Centred, lambda B, layer: centred(B))],
    ids=["scaled", "standardized"],
)
def test_what_acts_on_w_acts_on_b(double, kind, stands_in):
    net, x, attachment = attached(kind(6, 4))
    e = torch.randn(6, 4)
    assert_same([signal(net, x, e)], [e @ stands_in(backward_weight(attachment), net.layer)])
    assert "through its own forward" in str(attachment)


def test_masks_that_begin_at_one_and_adapters_that_begin_at_zero(double):
    e = torch.randn(6, 4)
    net, x, attachment = attached(Masked(6, 4))
    assert_same([signal(net, x, e)], [e @ backward_weight(attachment)])
    net.layer.mask[:, ::2] = 0
    assert_same([signal(net, x, e)], [e @ (backward_weight(attachment) * net.layer.mask)])

    net, x, attachment = attached(Adapted(6, 4))
    assert_same([signal(net, x, e)], [e @ backward_weight(attachment)])
    nn.init.normal_(net.layer.B)
    path = (net.layer.B @ net.layer.A).detach()
    assert_same([signal(net, x, e)], [e @ (backward_weight(attachment) + path)])
    h = net.below(x).detach()
    assert_same([net.layer.B.grad], [e.T @ (h @ net.layer.A.T).detach()])

    net, x, attachment = attached(Switched(6, 4))
    assert_same([signal(net, x, e)], [e @ backward_weight(attachment)])
    net.layer.factor = 3.0
    assert_same([signal(net, x, e)], [3 * e @ backward_weight(attachment)])


def test_signs_and_kolen_pollack_take_the_same_way(double):
    e = torch.randn(6, 4)
    net, x, attachment = attached(Half(6, 4), bpfree.SignSymmetry("uniform"))
    B = attachment.feedback["layer"] * net.layer.weight.detach().sign()
    assert_same([signal(net, x, e)], [0.5 * e @ B])

    net, x, attachment = attached(Masked(6, 4), bpfree.KolenPollack())
    net.layer.mask[0] = 0
    assert_same([signal(net, x, e)], [e @ (attachment.feedback["layer"].detach() * net.layer.mask)])
    assert torch.equal(attachment.feedback["layer"].grad, net.layer.weight.grad)
    assert not attachment.feedback["layer"].grad[0].any()


@pytest.mark.parametrize("first", ["hooks", "attach"])
def test_hooks_that_change_values_are_passed_exactly(double, first):
    layer, x, e = nn.Linear(6, 4), torch.randn(6, 6), torch.randn(6, 4)
    net = Net(layer, 6)

    def hook():
        layer.register_forward_pre_hook(lambda module, args: (2 * args[0],))
        layer.register_forward_hook(lambda module, args, output: 3 * output)
        layer.register_forward_hook(lambda module, args, output: output.tanh(), prepend=True)

    if first == "hooks":
        hook()
    attachment = bpfree.attach(net, bpfree.FA(), example_inputs=x)
    if first == "attach":
        hook()
    W, b = layer.weight.detach(), layer.bias.detach()
    slope = 1 - (2 * net.below(x).detach() @ W.T + b).tanh() ** 2
    assert_same([signal(net, x, e)], [2 * (3 * e * slope) @ backward_weight(attachment)])


def causal(x, W):
    """y[n, o, t] = sum_k W[o, i, k] x[n, i, t - K + 1 + k], by loops."""
    K = W.shape[2]
    y = torch.zeros(x.shape[0], W.shape[0], x.shape[2])
    for t in range(x.shape[2]):
        for k in range(K):
            if t - K + 1 + k >= 0:
                y[:, :, t] += x[:, :, t - K + 1 + k] @ W[:, :, k].T
    return y


def grouped_same(x, W):
    """A convolution of stride 2 with two groups, zeros put below and to the right, by loops."""
    n, _, height, width = x.shape
    y = torch.zeros(n, W.shape[0], -(-height // 2), -(-width // 2))
    half_in, half_out = x.shape[1] // 2, W.shape[0] // 2
    for g in range(2):
        inputs, weights = x[:, g * half_in : (g + 1) * half_in], W[g * half_out : (g + 1) * half_out]
        for i in range(y.shape[2]):
            for j in range(y.shape[3]):
                window = inputs[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                part = weights[:, :, : window.shape[2], : window.shape[3]]
                y[:, g * half_out : (g + 1) * half_out, i, j] = torch.einsum("nchw,ochw->no", window, part)
    return y


class PaddedInside(nn.Conv1d):
    def forward(self, x):
        return super().forward(F.pad(x, (2, 0)))


class Cropped(nn.Conv1d):
    def forward(self, x):
        return super().forward(x)[..., : x.shape[-1]]


class Same(nn.Conv2d):
    def forward(self, x):
        padded = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
        return F.conv2d(padded, self.weight, self.bias, self.stride, groups=self.groups)


CONVOLUTIONS = {
    "causal, padded inside": (lambda: PaddedInside(3, 4, 3), causal, (2, 3, 7)),
    "causal, cropped": (lambda: Cropped(3, 4, 3, padding=2), causal, (2, 3, 7)),
    "grouped, same, stride 2": (lambda: Same(4, 6, 2, stride=2, groups=2), grouped_same, (2, 4, 5, 7)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_that_pad_or_crop_in_their_own_forward(double, kind):
    make, by_loops, shape = CONVOLUTIONS[kind]
    model, x = nn.Sequential(nn.PReLU(shape[1]), make()), torch.randn(shape)
    attachment = bpfree.attach(model, bpfree.FA(), example_inputs=x)
    output = model(x)
    h = model[0](x).detach()
    plain = by_loops(h, model[1].weight.detach())
    bias = model[1].bias.detach().view(1, -1, *([1] * (len(shape) - 2)))
    assert_same([output.detach()], [plain + bias])
    e = torch.randn_like(output)
    (output * e).sum().backward()
    # The map is linear in its input: column i of J(B) is what it makes of the i-th unit vector.
    units = torch.eye(h[0].numel()).view(-1, *shape[1:])
    J = by_loops(units, attachment.feedback["1"]).flatten(1)
    delta = (e.flatten(1) @ J.T).view(shape)
    slope = (delta * x.clamp(max=0)).sum([d for d in range(len(shape)) if d != 1])
    assert_same([model[0].weight.grad], [slope])


# -- weights that are computed -----------------------------------------------------------------------------------------


def test_pruned_layers_and_normed_weights_stand_for_the_whole_weight(double):
    e = torch.randn(6, 4)
    net, x, attachment = attached(prune.random_unstructured(nn.Linear(6, 4), "weight", 0.5))
    assert_same([signal(net, x, e)], [e @ backward_weight(attachment)])
    attachment.feedback["layer"].copy_(net.layer.weight_orig.detach() * net.layer.weight_mask)
    assert_same([signal(net, x, e)], [e @ (net.layer.weight_orig * net.layer.weight_mask).detach()])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layer = nn.utils.weight_norm(nn.Linear(6, 4))
    net, x, attachment = attached(layer)
    assert_same([signal(net, x, e)], [e @ backward_weight(attachment)])
    v = layer.weight_v.detach()
    attachment.feedback["layer"].copy_(layer.weight_g.detach() * v / v.norm(dim=1, keepdim=True))
    exact = signal(net, x, e)
    attachment.detach()
    assert_same([exact], [signal(net, x, e)])


def test_a_spectral_norm_moves_once_in_a_pass_as_without_a_rule(double):
    torch.manual_seed(3)
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(Net(parametrizations.spectral_norm(nn.Linear(6, 4)), 6))
    ours, theirs = models
    attachment = bpfree.attach(ours, bpfree.WeightMirror())
    x = torch.randn(6, 6)
    for _ in range(3):
        assert torch.equal(ours(x), theirs(x))
    with attachment.mechanism.transporting():
        found = signal(ours, x, torch.ones(6, 4))
    assert_same([found], [signal(theirs, x, torch.ones(6, 4))])


# -- ordinary gradients ------------------------------------------------------------------------------------------------


class Rectified(nn.Linear):
    def forward(self, x):
        return super().forward(x).relu()


class Clamped(nn.Linear):
    """Linear for small inputs."""

    def forward(self, x):
        return super().forward(x).clamp(-20, 20)


class DropConnected(nn.Linear):
    def forward(self, x):
        return F.linear(x, F.dropout(self.weight, 0.5), self.bias)


class Counting(nn.Linear):
    def __init__(self, wide, out):
        super().__init__(wide, out)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


class Double(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


class Ignoring(nn.Linear):
    """Has a weight, and computes with another."""

    def __init__(self, wide, out):
        super().__init__(wide, out)
        self.used = nn.Parameter(torch.randn(out, wide))

    def forward(self, x):
        return x @ self.used.T


class First(nn.Module):
    """Takes the real part of the first of what a layer returns."""

    def __init__(self, layer):
        super().__init__()
        self.inner = layer

    def forward(self, x):
        dtype = next(self.inner.parameters()).dtype
        output = self.inner(x.to(dtype) if dtype.is_complex else x)
        output = output[0] if isinstance(output, tuple) else output
        return output.real if output.is_complex() else output


ORDINARY = {
    "fused non-linearity": (lambda: Rectified(6, 4), "its output is not linear in its input"),
    "clamp": (lambda: Clamped(6, 4), "its output is not linear in its input"),
    "random mask": (lambda: DropConnected(6, 4), "it draws random numbers or changes its own state"),
    "state of its own": (lambda: Counting(6, 4), "it draws random numbers or changes its own state"),
    "tuple": (lambda: Double(6, 4), "it returns a tuple"),
    "complex weight": (lambda: nn.Linear(6, 4, dtype=torch.cdouble), "its weight is complex"),
    "another weight": (lambda: Ignoring(6, 4), "its 'weight' has no part in its input's gradient"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ORDINARY)
def test_what_is_no_linear_map_passes_its_ordinary_gradient_and_says_why(double, kind):
    make, why = ORDINARY[kind]
    net, x, e = Net(First(make()), 6), torch.randn(6, 6), torch.randn(6, 4)
    state = {name: buffer.clone() for name, buffer in net.named_buffers()}

    def step():
        with torch.no_grad():
            for name, buffer in net.named_buffers():
                buffer.copy_(state[name])
        torch.manual_seed(5)
        return signal(net, x, e)

    exact = step()
    after = [buffer.clone() for buffer in net.buffers()]
    attachment = bpfree.attach(net, bpfree.FA())
    assert_same([step()], [exact])
    assert all(torch.equal(*pair) for pair in zip(net.buffers(), after, strict=True))
    line = next(line for line in str(attachment).splitlines() if line.startswith("layer.inner"))
    assert "ordinary gradients, for" in line
    assert why in line


def test_finding_out_leaves_no_trace(double):
    class Listing(nn.Linear):
        def __init__(self, wide, out):
            super().__init__(wide, out)
            self.seen = []

        def forward(self, x):
            self.seen.append(len(x))
            return super().forward(x) * 2

    net, x = Net(Listing(6, 4), 6), torch.randn(6, 6)
    bpfree.attach(net, bpfree.FA())
    torch.manual_seed(1)
    before = torch.get_rng_state()
    net(x)
    assert net.layer.seen == [6]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_layer_that_returns_something_else_later_is_refused_by_name(double):
    class Sometimes(nn.Linear):
        def forward(self, x):
            output = super().forward(x) * 2
            return (output, x) if len(x) > 6 else output

    net, x, _ = attached(Sometimes(6, 4))
    net(x)
    with pytest.raises(bpfree.errors.UnsupportedLayerError, match=r"layer 'layer' returns a tuple now"):
        net(torch.randn(8, 6))


def test_inside_the_segments_of_a_direct_rule(double):
    net, x, e = Net(nn.Sequential(Masked(6, 6), nn.Tanh(), nn.Linear(6, 4)), 6), torch.randn(6, 6), torch.randn(6, 4)
    net.layer[0].mask[:, ::3] = 0
    attachment = bpfree.attach(net, bpfree.DFA(), within=bpfree.FA(), example_inputs=x)
    h = torch.tanh(net.layer[0](net.below(x))).detach()
    B = attachment.feedback.matrix(attachment.mechanism.sites[0])
    inner = attachment.within.feedback["layer.0"]
    assert_same([signal(net, x, e)], [((e @ B) * (1 - h**2)) @ (inner * net.layer[0].mask)])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [qat.Linear, intrinsic.LinearReLU])
def test_quantization_aware_layers_are_backpropagation_with_b_equal_to_w(kind):
    """The weight is rounded, and the rounding passes gradients as if it were not there."""
    torch.manual_seed(0)
    net, x = Net(kind(6, 4, qconfig=get_default_qat_qconfig("x86")), 6), torch.randn(6, 6)
    net(x)  # ranges settle
    attachment = bpfree.attach(net, bpfree.FA(), example_inputs=x)

    def gradient():
        net.zero_grad()
        net(x).square().sum().backward()
        return net.below.weight.grad.clone()

    state = [buffer.clone() for buffer in net.buffers()]
    with attachment.mechanism.transporting():
        found = gradient()
    random = gradient()
    assert all(torch.equal(*pair) for pair in zip(net.buffers(), state, strict=True))
    with attachment.paused():
        exact = gradient()
    torch.testing.assert_close(found, exact)
    assert torch.allclose(random, exact) == (kind is intrinsic.LinearReLU)  # no linear map: ordinary gradients


def test_float32_is_served_too():
    torch.manual_seed(0)
    net, x, attachment = attached(Half(6, 4))
    e = torch.randn(6, 4)
    torch.testing.assert_close(signal(net, x, e), 0.5 * e @ backward_weight(attachment), rtol=1e-3, atol=1e-4)
    assert "through its own forward" in str(attachment)


def test_under_autocast_in_half_precision():
    torch.manual_seed(0)
    net, x = Net(Half(6, 4), 6), torch.randn(6, 6)
    attachment = bpfree.attach(net, bpfree.FA())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (net(x).float() * torch.ones(6, 4)).sum().backward()
    delta = 0.5 * torch.ones(6, 4) @ backward_weight(attachment)
    off = (net.below.weight.grad - delta.T @ x).norm() / (delta.T @ x).norm()
    assert off < 0.02  # bfloat16 has 8 bits
