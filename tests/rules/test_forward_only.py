"""Rules without a backward pass, against averages, identities, and PEPITA written out by hand."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel

import bpfree
from support.by_hand import assert_same, softmax_error
from support.rule_contract import Subject, assert_equal, assert_rule_serves, hooks
from support.two_ranks import run_on_two_ranks

C = 3
WEIGHTS, ACTIVATIONS = bpfree.ForwardGradient("weights"), bpfree.ForwardGradient()
GRAPHLESS = [WEIGHTS, bpfree.PEPITA(), bpfree.PEPITA(output_error="second")]
ALL = [*GRAPHLESS, ACTIVATIONS]


def mlp(dropout=0.0):
    drop = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), *drop, nn.Linear(5, 5), nn.Tanh(), *drop, nn.Linear(5, C))


def convnet():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(2, 2, 2), nn.Tanh(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2, C),
    )  # fmt: skip


class Tokens(nn.Module):
    """Tokens that see each other; one tap reached twice."""

    def __init__(self):
        super().__init__()
        self.first, self.cell, self.head, self.act = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, C), nn.Tanh()

    def forward(self, x):
        h = self.act(self.first(x))
        return self.head(self.act(self.cell(h + h.mean(1, keepdim=True))))


MODELS = {"mlp": (mlp, (6, 4)), "convolution": (convnet, (6, 1, 6, 6)), "tokens": (Tokens, (3, 2, 4))}


def data(name):
    _, shape = MODELS[name]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator)
    return x, torch.randint(0, C, shape[:2] if name == "tokens" else shape[:1], generator=generator)


def loss_of(model, x, y):
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


@pytest.mark.parametrize("rule", [*ALL, bpfree.ForwardGradient(per="batch")], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_an_empty_batch_teaches_nothing(name, rule):
    model, (x, _) = MODELS[name][0](), data(name)
    bpfree.attach(model, rule)
    model(x[:0]).sum().backward()
    assert not any(bool(parameter.grad.any()) for parameter in model.parameters())


def gradients(model, x, y):
    model.zero_grad()
    loss_of(model, x, y).backward()
    return [parameter.grad for parameter in model.parameters()]


# -- forward gradients: what must hold on average, and what must hold exactly -----------------------------------------


@pytest.mark.parametrize("perturbations", ["normal", "rademacher"])
@pytest.mark.parametrize("of", ["weights", "activations"])
@pytest.mark.parametrize("name", MODELS)
def test_the_average_is_the_gradient(double, name, of, perturbations):
    build, _ = MODELS[name]
    model, (x, y) = build(), data(name)
    exact = torch.cat([gradient.flatten() for gradient in gradients(copy.deepcopy(model), x, y)])
    bpfree.attach(model, bpfree.ForwardGradient(of, perturbations=perturbations), seed=2)
    # Every sample has directions of its own in the activations: the same batch 15 times over is 15 draws in one pass.
    # In the weights one pass is one draw.
    draws, times = (1500, 15) if of == "activations" else (600, 1)
    x, y, passes = x.repeat(times, *[1] * (x.dim() - 1)), y.repeat(times, *[1] * (y.dim() - 1)), draws // times
    samples = torch.stack([torch.cat([g.flatten() for g in gradients(model, x, y)]) for _ in range(passes)])
    off = samples.mean(0) - exact
    # Each of at most 77 numbers within 5 standard errors of its mean: wrong by chance in less than 1 of 4,000 draws
    # of the whole test, and the draws are seeded. What is exact (the output layer's) has a standard error of 0.
    error = samples.std(0) / math.sqrt(passes)
    assert (off.abs() <= 5 * error + 1e-14).all(), float((off.abs() / error).max())
    # The bound above is small enough to mean something: of 77 directions V the average of n is off by sqrt(78 / n).
    assert off.norm() < 2 * math.sqrt(78 / draws) * exact.norm()


def test_a_forward_gradient_of_weights_is_the_slope_times_a_direction(double):
    model, (x, y) = mlp(), data("mlp")
    exact = torch.cat([gradient.flatten() for gradient in gradients(copy.deepcopy(model), x, y)])
    bpfree.attach(model, bpfree.ForwardGradient("weights", perturbations="rademacher"), seed=2)
    found = torch.cat([gradient.flatten() for gradient in gradients(model, x, y)])
    # G = s V with s = <g, V> and V of -1 and 1: every |G_i| is |s|, and <g, G> = s^2.
    assert_same([found.abs()], [found[0].abs().expand_as(found)])
    assert_same([exact @ found], [found[0] ** 2])


def test_a_forward_gradient_of_activations_is_the_slope_times_a_direction(double):
    model = nn.Sequential(nn.Linear(4, 5), bpfree.Tap(), nn.Linear(5, C))
    x, y = torch.randn(1, 4), torch.tensor([1])
    exact = gradients(copy.deepcopy(model), x, y)
    bpfree.attach(model, bpfree.ForwardGradient(perturbations="rademacher"), seed=2)
    found = gradients(model, x, y)
    signal = found[1]  # of one sample, the bias's gradient is the signal at the tap
    assert_same([signal.abs()], [signal[0].abs().expand(5)])
    assert_same([exact[1] @ signal], [signal[0] ** 2])
    assert_same(found[2:], exact[2:])


def test_rows_that_see_each_other_need_the_slope_of_their_sample(double):
    # 'row' leaves out what a token does to others, so its average is the gradient of another model: tokens alone.
    model, (x, y) = Tokens(), data("tokens")
    exact = gradients(copy.deepcopy(model), x, y)[0]
    bpfree.attach(model, bpfree.ForwardGradient(per="row"), seed=2)
    # The same batch 15 times over is 15 draws in one pass.
    x, y = x.repeat(15, 1, 1), y.repeat(15, 1)
    samples = torch.stack([gradients(model, x, y)[0] for _ in range(100)])
    error = samples.std(0) / math.sqrt(len(samples))
    assert ((samples.mean(0) - exact).abs() > 5 * error).any()


def test_parameters_that_a_pass_does_not_use_get_no_noise():
    class Chooses(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.above = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, C)
            self.gru, self.other_gru = nn.GRU(5, 5, batch_first=True), nn.GRU(5, 5, batch_first=True)
            self.attention = nn.MultiheadAttention(5, 1, batch_first=True)

        def forward(self, x):
            h = self.gru(self.used(x)[:, None])[0]
            return self.above(self.attention(h, h, h)[0][:, 0])

    model, (x, y) = Chooses(), data("mlp")
    model.used.bias.requires_grad_(False)
    exact = gradients(copy.deepcopy(model), x, y)
    weights = list(model.gru._flat_weights)
    bpfree.attach(model, WEIGHTS)
    found = gradients(model, x, y)
    assert [g is None for g in found] == [g is None for g in exact]
    assert sum(g is None for g in exact) == 7
    assert all(now is before for now, before in zip(model.gru._flat_weights, weights, strict=True))
    assert all(isinstance(parameter, nn.Parameter) for parameter in model.parameters())


def test_tied_weights_share_one_direction(double):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, C)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.head(torch.tanh(self.two(torch.tanh(self.one(x)))))

    model, (x, y) = Tied(), data("mlp")
    exact = torch.cat([gradient.flatten() for gradient in gradients(copy.deepcopy(model), x, y)])
    bpfree.attach(model, bpfree.ForwardGradient("weights", perturbations="rademacher"))
    found = torch.cat([gradient.flatten() for gradient in gradients(model, x, y)])
    assert_same([exact @ found], [found[0] ** 2])


# -- PEPITA by hand ---------------------------------------------------------------------------------------------------


def pepita_mlp(model, x, y, matrix, masks, output_error):
    """Gradients of an nn.Sequential(Linear, Tanh, Dropout, ..., Linear), by matrix products alone."""
    linears = [layer for layer in model if isinstance(layer, nn.Linear)]
    W = [layer.weight.detach() for layer in linears]
    b = [layer.bias.detach() for layer in linears]

    def forward(h):
        hidden = [h]
        for weight, bias, mask in zip(W[:-1], b[:-1], masks, strict=True):
            hidden.append(torch.tanh(hidden[-1] @ weight.T + bias) * mask)
        return hidden, hidden[-1] @ W[-1].T + b[-1]

    n = len(x)
    first, output = forward(x)
    e = softmax_error(output, y) * n
    second, modulated = forward(x - e @ matrix.T)
    at_head = e if output_error == "first" else softmax_error(modulated, y) * n
    signals = [h - h_err for h, h_err in zip(first[1:], second[1:], strict=True)] + [at_head]
    found = []
    for signal, below in zip(signals, second, strict=True):
        found += [signal.T @ below / n, signal.mean(0)]
    return found


@pytest.mark.parametrize("output_error", ["first", "second"])
def test_pepita_is_its_form_written_out(double, output_error):
    model, (x, y) = mlp(dropout=0.4), data("mlp")
    attachment = bpfree.attach(model, bpfree.PEPITA(output_error=output_error), seed=2)
    torch.manual_seed(5)
    masks = [F.dropout(torch.ones(len(x), 5), 0.4) for _ in range(2)]
    assert not torch.equal(*masks)
    torch.manual_seed(5)
    found = gradients(model, x, y)
    drawn = torch.rand(3)
    assert_same(found, pepita_mlp(model, x, y, attachment.feedback["F"], masks, output_error))
    torch.manual_seed(5)
    model(x)
    assert torch.equal(drawn, torch.rand(3)), "the second pass has moved the global random state"


@pytest.mark.parametrize("output_error", ["first", "second"])
@pytest.mark.parametrize("ignored", [[1], [0, 4, 5], []], ids=str)
def test_rows_that_no_loss_touches_are_not_counted(double, output_error, ignored):
    """A batch with rows whose targets are ignored teaches what the batch without these rows does."""
    model, (x, y) = mlp(), data("mlp")
    attachment = bpfree.attach(model, bpfree.PEPITA(output_error=output_error), seed=2)
    y[ignored] = -100
    found = gradients(model, x, y)
    counted = y >= 0
    masks = [torch.ones(int(counted.sum()), 5)] * 2
    assert_same(found, pepita_mlp(model, x[counted], y[counted], attachment.feedback["F"], masks, output_error))


def test_tokens_without_a_target_are_not_counted(double):
    model, twin, (x, y) = nn.Sequential(mlp()), nn.Sequential(mlp()), data("tokens")
    twin.load_state_dict(model.state_dict())
    y[0, 1] = y[2, 0] = -100
    for net in (model, twin):
        bpfree.attach(net, bpfree.PEPITA(), seed=2)
    assert_same(gradients(model, x, y), gradients(twin, x[y >= 0], y[y >= 0]))


def test_a_batch_that_no_loss_touches_teaches_nothing(double):
    model, (x, _) = mlp(), data("mlp")
    bpfree.attach(model, bpfree.PEPITA())
    (model(x) * 0).sum().backward()
    assert all(not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("kind", ["masked", "scaled", "adapted"])
def test_a_layer_with_a_forward_of_its_own_gets_the_gradients_of_that(double, kind):
    """The local gradient of weight and bias is that of what the layer computes, for the signal at its output."""

    class Layer(nn.Linear):
        def __init__(self):
            super().__init__(5, 5)
            self.mask = (torch.arange(25) % 3 > 0).view(5, 5).double()
            self.A, self.B = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.randn(5, 2))

        def forward(self, x):
            if kind == "adapted":
                return super().forward(x) + x @ self.A.T @ self.B.T
            weight = self.weight * self.mask if kind == "masked" else self.weight * 0.5
            return F.linear(x, weight, self.bias)

    torch.manual_seed(4)
    layer = Layer()
    model, (x, y) = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), layer, nn.Tanh(), nn.Linear(5, C)), data("mlp")
    attachment = bpfree.attach(model, bpfree.PEPITA(), seed=2)
    found = dict(zip([name for name, _ in model.named_parameters()], gradients(model, x, y), strict=True))
    with torch.no_grad():
        e = softmax_error(model(x), y) * len(x)
        x_err = x - e @ attachment.feedback["F"].T
        h, h_err, below = model[:4](x), model[:4](x_err), model[:2](x_err)
        signal = (h - h_err) / len(x)
        whole = signal.T @ below
        expected = {"masked": whole * layer.mask, "scaled": whole * 0.5, "adapted": whole}[kind]
        assert_same([found["2.weight"], found["2.bias"]], [expected, signal.sum(0)])
        if kind == "adapted":
            assert_same([found["2.A"], found["2.B"]], [layer.B.T @ whole, whole @ layer.A.T])


def test_pepita_leaves_out_a_layer_that_is_no_linear_map():
    class Rectified(nn.Linear):
        def forward(self, x):
            return super().forward(x).relu()

    model, (x, y) = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Rectified(5, 5), nn.Tanh(), nn.Linear(5, C)), data("mlp")
    attachment = bpfree.attach(model, bpfree.PEPITA())
    found = gradients(model, x, y)
    assert [gradient is None for gradient in found] == [False, False, True, True, False, False]
    line = next(line for line in str(attachment).splitlines() if line.startswith("2 "))
    assert "nothing: its output is not linear in its input" in line
    headless = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Rectified(5, C))
    bpfree.attach(headless, bpfree.PEPITA())
    with pytest.raises(bpfree.errors.UnsupportedLayerError, match=r"output layer '2' cannot learn by PEPITA"):
        headless(x)


def test_pepita_descends_where_f_is_the_transposed_weights(double):
    # h - h_err is W1 F e to first order. With F = W1^T W2^T it is W1 W1^T W2^T e, and the update has a positive inner
    # product with backpropagation's.
    model, (x, y) = nn.Sequential(nn.Linear(4, 5), bpfree.Tap(), nn.Linear(5, C)), data("mlp")
    exact = gradients(copy.deepcopy(model), x, y)
    attachment = bpfree.attach(model, bpfree.PEPITA(), example_inputs=x)
    W1, W2 = model[0].weight.detach(), model[2].weight.detach()
    attachment.feedback["F"].copy_(1e-6 * W1.T @ W2.T)
    found = gradients(model, x, y)
    for ours, theirs in zip(found, exact, strict=True):
        assert F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.2


def test_f_is_uniform(double):
    model = nn.Sequential(nn.Linear(600, 5), nn.Tanh(), nn.Linear(5, C))
    attachment = bpfree.attach(model, bpfree.PEPITA(), example_inputs=torch.randn(2, 600))
    matrix, bound = attachment.feedback["F"], 0.05 * math.sqrt(6 / 600)
    assert matrix.shape == (600, C)
    # The largest of 1800 lies within 1% of the bound but for 1 in 10^7; the standard deviation of a uniform variable is
    # bound / sqrt(3), that of its estimate 1.1% of it.
    assert 0.99 * bound < matrix.abs().max() <= bound
    assert abs(float(matrix.std()) / (bound / math.sqrt(3)) - 1) < 0.05


def patches(x, layer):
    """(N, positions, C K K) of a convolution's input."""
    return F.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride).transpose(1, 2)


@pytest.mark.parametrize("positions", ["mean", "sqrt", "sum"])
def test_pepita_on_convolutions_is_its_form_written_out(double, positions):
    model, (x, y) = convnet(), data("convolution")
    attachment = bpfree.attach(model, bpfree.PEPITA(positions=positions), seed=2)
    found = gradients(model, x, y)
    one, two, head = model[0], model[2], model[6]

    def convolution(h, layer, size):
        out = patches(h, layer) @ layer.weight.flatten(1).T + layer.bias
        return torch.tanh(out).transpose(1, 2).reshape(len(h), -1, size, size)

    def forward(x):
        h1 = convolution(x, one, 3)
        h2 = convolution(h1, two, 2)
        return h1, h2, h2.amax((2, 3))

    with torch.no_grad():
        h1, h2, pooled = forward(x)
        e = softmax_error(pooled @ head.weight.T + head.bias, y) * len(x)
        x_err = x - (e @ attachment.feedback["F"].T).reshape(x.shape)
        k1, k2, pooled = forward(x_err)
        expected = []
        for layer, h, h_err, below in ((one, h1, k1, x_err), (two, h2, k2, k1)):
            signal = (h - h_err).flatten(2).transpose(1, 2)
            count = signal.shape[1]
            factor = {"mean": 1 / count, "sqrt": count**-0.5, "sum": 1}[positions] / len(x)
            weight = torch.einsum("npo,npi->oi", signal, patches(below, layer)) * factor
            expected += [weight.reshape(layer.weight.shape), signal.sum((0, 1)) * factor]
        expected += [e.T @ pooled / len(x), e.mean(0)]
    assert_same(found, expected)


@pytest.mark.parametrize("options", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}, {"groups": 2}])
def test_every_convolution_gets_its_local_gradient(double, options):
    # A convolution as output layer gets dL/do (x) its input in the second pass; with a tiny F that is the first input.
    model = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv1d(4, 2, 3, **options))
    x = torch.randn(3, 2, 6)
    exact, found = copy.deepcopy(model), model
    bpfree.attach(found, bpfree.PEPITA(amplitude=1e-15))
    for net in (exact, found):
        net(x).square().mean().backward()
    assert_same([found[2].weight.grad, found[2].bias.grad], [exact[2].weight.grad, exact[2].bias.grad], 1e-11)


def test_pepita_trains_what_a_tap_follows_and_says_so():
    model = nn.Sequential(
        nn.Conv1d(1, 2, 3, bias=False), nn.BatchNorm1d(2), nn.ReLU(inplace=True), nn.Conv1d(2, 2, 1), nn.MaxPool1d(2),
        nn.Flatten(), nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, C),
    )  # fmt: skip
    attachment = bpfree.attach(model, bpfree.PEPITA())
    x, y = torch.randn(8, 1, 6), torch.randint(0, C, (8,))
    gradients(model, x, y)
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned == {"0.weight", "6.weight", "6.bias", "9.weight", "9.bias"}
    assert int(model[1].num_batches_tracked) == 1
    told = str(attachment)
    assert "the two passes' difference at 2" in told
    assert "No gradient reaches 1 (BatchNorm1d)" in told
    assert [line.split()[2] for line in told.splitlines() if line[:1] == "3"] == ["nothing:"]


def test_pepita_sees_keyword_arguments_and_hands_on_the_others(double):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x, factor=1.0):
            return self.net(x * factor)

    x, y = data("mlp")
    found = []
    for call in (lambda model: model(x, 2.0), lambda model: model(x=x, factor=2.0), lambda model: model(x, factor=2.0)):
        torch.manual_seed(0)
        model = Scaled()
        bpfree.attach(model, bpfree.PEPITA())
        F.cross_entropy(call(model), y).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert_equal(found[1], found[0])
    assert_equal(found[2], found[0])


def test_what_lies_above_error_at_is_exact(double):
    x, y = data("mlp")

    class Headed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.above = mlp(), nn.Sequential(nn.Tanh(), nn.Linear(C, C))

        def forward(self, x):
            return self.above(self.body(x))

    for rule in ALL:
        torch.manual_seed(0)
        model = Headed()
        exact = gradients(copy.deepcopy(model), x, y)
        bpfree.attach(model, rule, error_at="body", taps="body.*[13]")
        if rule == bpfree.PEPITA(output_error="second"):  # at 'body' the error is not a cross-entropy's
            continue
        found = gradients(model, x, y)
        assert_same(found[-2:], exact[-2:])
        assert all(gradient is not None for gradient in found)


# -- what holds for all ----------------------------------------------------------------------------------------------


def subject(name):
    build, (_, *rest) = MODELS[name]
    x = torch.randn((24, *rest))
    y = x[..., :C].argmax(-1)

    def made():
        torch.manual_seed(0)
        return build()

    return Subject(made, lambda model: model(x), lambda model: loss_of(model, x, y), y)


@pytest.mark.parametrize("rule", [bpfree.PEPITA(), bpfree.PEPITA(output_error="second"), ACTIVATIONS], ids=str)
@pytest.mark.parametrize("name", ["mlp", "tokens"])
def test_the_loss_falls_and_nothing_is_left(name, rule):
    assert_rule_serves(subject(name), rule)


@pytest.mark.parametrize("rule", ALL, ids=str)
def test_detached_nothing_is_left(rule):
    model, (x, y) = mlp(), data("mlp")
    before, plain = hooks(model), copy.deepcopy(model)
    attachment = bpfree.attach(model, rule)
    gradients(model, x, y)
    model(x)
    attachment.detach()
    assert hooks(model) == before
    assert_equal(gradients(model, x, y), gradients(plain, x, y))


@pytest.mark.parametrize("rule", ALL, ids=str)
def test_paused_and_without_gradients_the_model_is_itself(rule):
    model, (x, y) = mlp(dropout=0.3), data("mlp")
    plain, attachment = copy.deepcopy(model), bpfree.attach(model, rule, example_inputs=x)
    state = copy.deepcopy(attachment.state_dict())
    with attachment.paused():
        torch.manual_seed(3)
        found = gradients(model, x, y)
    torch.manual_seed(3)
    assert_equal(found, gradients(plain, x, y))
    with torch.no_grad():
        output = model.eval()(x)
    assert not output.requires_grad
    assert torch.equal(output, plain.eval()(x))
    assert_equal(state.values(), attachment.state_dict().values())


class Counting(nn.Module):
    """The k-th pass sees k times its input."""

    def __init__(self):
        super().__init__()
        self.net = mlp()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        return self.net(x * self.passes)


def test_pepita_compares_passes_that_begin_with_the_same_buffers(double):
    # An error of next to nothing changes next to nothing, unless the second pass were pass k + 1.
    model, (x, y) = Counting(), data("mlp")
    bpfree.attach(model, bpfree.PEPITA(amplitude=1e-9))
    for _ in range(2):
        model.zero_grad()
        loss_of(model, x, y).backward()
    assert 0 < model.net[0].weight.grad.norm() < 1e-7
    assert model.net[4].weight.grad.norm() > 1e-2
    assert model.passes == 2


@pytest.mark.parametrize("rule", GRAPHLESS, ids=str)
def test_the_forward_pass_stores_nothing(rule):
    model, (x, _) = convnet(), data("convolution")
    bpfree.attach(model, rule)
    saved = []
    with saved_tensors_hooks(lambda tensor: saved.append(tensor.shape), lambda packed: None):
        output = model(x)
    assert saved == []
    assert output.requires_grad


@pytest.mark.parametrize("rule", ALL, ids=str)
def test_output_and_random_state_are_those_of_the_model(rule):
    model, (x, _) = mlp(dropout=0.3), data("mlp")
    plain = copy.deepcopy(model)
    bpfree.attach(model, rule)
    outputs = []
    for net in (model, plain):
        torch.manual_seed(3)
        outputs.append((net(x).detach(), torch.rand(2)))
    assert_equal(outputs[0], outputs[1])


def test_micro_batches_of_pepita_add_up_to_the_batch(double):
    model, (x, y) = mlp(), data("mlp")
    whole, parts = copy.deepcopy(model), copy.deepcopy(model)
    bpfree.attach(whole, bpfree.PEPITA())
    bpfree.attach(parts, bpfree.PEPITA(scale=0.5))
    expected = gradients(whole, x, y)
    for half in (slice(0, 3), slice(3, 6)):
        (F.cross_entropy(parts(x[half]), y[half]) * 0.5).backward()
    assert_same([parameter.grad for parameter in parts.parameters()], expected)


@pytest.mark.parametrize("rule", [WEIGHTS, ACTIVATIONS], ids=str)
def test_micro_batches_of_forward_gradients_add_up(double, rule):
    # Two passes draw two directions: the sum of their gradients is what two single passes give.
    model, (x, y) = mlp(), data("mlp")
    twin = copy.deepcopy(model)
    for net in (model, twin):
        bpfree.attach(net, rule, seed=1)
    single = [[g.clone() for g in gradients(model, x[half], y[half])] for half in (slice(0, 3), slice(3, 6))]
    for half in (slice(0, 3), slice(3, 6)):
        F.cross_entropy(twin(x[half]), y[half]).backward()
    assert_same([p.grad for p in twin.parameters()], [a + b for a, b in zip(*single, strict=True)])


@pytest.mark.parametrize("rule", ALL, ids=str)
def test_two_passes_may_be_open_at_once(double, rule):
    model, (x, y) = mlp(), data("mlp")
    twin = copy.deepcopy(model)
    for net in (model, twin):
        bpfree.attach(net, rule, seed=1)
    expected = [[g.clone() for g in gradients(model, part, y)] for part in (x, -x)]
    outputs = [twin(x), twin(-x)]
    for output, grads in zip(reversed(outputs), reversed(expected), strict=True):
        twin.zero_grad()
        F.cross_entropy(output, y).backward()
        assert_same([p.grad for p in twin.parameters()], grads)


DISTRIBUTED = [bpfree.PEPITA(), WEIGHTS, ACTIVATIONS]


def on_a_rank(rank):
    """For each rule: this rank's gradients of a second step without DDP, and the same with it."""
    return {str(rule): steps_on_a_rank(rank, rule) for rule in DISTRIBUTED}


def steps_on_a_rank(rank, rule):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, C)).double()
    x, y = data("mlp")
    x, y = x.double()[3 * rank : 3 * rank + 3], y[3 * rank : 3 * rank + 3]
    found = []
    for net in (copy.deepcopy(model), model):
        bpfree.attach(net, rule, seed=4)
        trained = DistributedDataParallel(net) if net is model else net
        for _ in range(2):
            grads = gradients(trained, x, y)
        found.append([np.zeros(0) if g is None else g.numpy() for g in grads])
    return found


@pytest.fixture(scope="module")
def ranks():
    return run_on_two_ranks(on_a_rank)


@pytest.mark.parametrize("rule", DISTRIBUTED, ids=str)
def test_two_processes_take_the_mean_of_both_gradients(ranks, rule):
    (alone_0, together_0), (alone_1, together_1) = (rank[str(rule)] for rank in ranks)
    for a, b, mean_0, mean_1 in zip(alone_0, alone_1, together_0, together_1, strict=True):
        assert np.array_equal(mean_0, mean_1)
        # PEPITA gives a LayerNorm no gradient, and DDP makes zeros of None.
        expected = (a + b) / 2 if a.size else np.zeros_like(mean_0)
        np.testing.assert_allclose(mean_0, expected, rtol=1e-12, atol=1e-15)
    if rule == WEIGHTS:
        # G = s V; the two ranks' V are other ones, so their G are not parallel.
        a, b = (np.concatenate([g.ravel() for g in alone]) for alone in (alone_0, alone_1))
        assert abs(a @ b) < 0.9 * np.linalg.norm(a) * np.linalg.norm(b)


# -- what can go wrong -----------------------------------------------------------------------------------------------


class Raises(nn.Module):
    """Raises ``kind`` where there is one."""

    kind = None

    def forward(self, x):
        if self.kind is not None:
            raise self.kind("on purpose")
        return x


@pytest.mark.parametrize("rule", GRAPHLESS, ids=str)
def test_an_exception_in_the_model_leaves_it_as_it_was(rule):
    model, (x, y) = mlp(), data("mlp")
    model.insert(2, Raises())
    bpfree.attach(model, rule)
    expected = gradients(model, x, y)
    for kind in (ValueError, KeyboardInterrupt):
        model[2].kind = kind
        with pytest.raises(kind, match="on purpose"):
            model(x)
        if kind is ValueError:  # an interrupt is put right by the next forward pass
            assert torch.is_grad_enabled()
            assert all(isinstance(layer.weight, nn.Parameter) for layer in model if isinstance(layer, nn.Linear))
        model[2].kind = None
        found = gradients(model, x, y)
        assert torch.is_grad_enabled()
        assert all(isinstance(layer.weight, nn.Parameter) for layer in model if isinstance(layer, nn.Linear))
        if isinstance(rule, bpfree.PEPITA):
            assert_equal(found, expected)


@pytest.mark.parametrize("rule", GRAPHLESS, ids=str)
def test_named_errors_of_the_pass(rule):
    model, (x, y) = mlp(), data("mlp")
    bpfree.attach(model, rule)
    loss = F.cross_entropy(model(x), y)
    loss.backward(retain_graph=True)
    with pytest.raises(bpfree.errors.UsedRecordError):
        loss.backward()
    with pytest.raises(bpfree.errors.NonFiniteError):
        (F.cross_entropy(model(x), y) * math.inf).backward()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("rule", GRAPHLESS, ids=str)
def test_error_at_must_be_reached_once(rule):
    class Oddly(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.calls = mlp(), 1

        def forward(self, x):
            for _ in range(self.calls):
                output = self.body(x)
            return output if self.calls else self.body.forward(x)

    model, (x, _) = Oddly(), data("mlp")
    bpfree.attach(model, rule, error_at="body")
    model(x)
    for calls, said in ((0, "not reached"), (2, "twice")):
        model.calls = calls
        with pytest.raises(bpfree.errors.ErrorPlacementError, match=said):
            model(x)
        assert torch.is_grad_enabled()


def test_options_are_checked():
    for wrong in ({"of": "layers"}, {"perturbations": "cauchy"}, {"per": "token"}):
        with pytest.raises(bpfree.errors.OptionError):
            bpfree.ForwardGradient(**wrong)
    for wrong in ({"amplitude": 0.0}, {"scale": -1.0}, {"output_error": "third"}, {"positions": "max"}):
        with pytest.raises(bpfree.errors.OptionError):
            bpfree.PEPITA(**wrong)
    for wrong in ({"window": 2}, {"within": bpfree.FA()}):
        with pytest.raises(bpfree.errors.OptionError, match=next(iter(wrong))):
            bpfree.attach(mlp(), WEIGHTS, **wrong)


def test_a_layer_without_forward_derivative_is_named():
    class Layer(nn.Module):
        def forward(self, x):
            image = x.reshape(1, 1, *x.shape)
            grid = F.affine_grid(torch.eye(2, 3)[None].to(x), image.shape, align_corners=False)
            return F.grid_sample(image, grid, align_corners=False).view(x.shape)

    model, (x, _) = mlp(), data("mlp")
    model.insert(1, Layer())
    bpfree.attach(model, WEIGHTS)
    with pytest.raises(bpfree.errors.ForwardDerivativeError, match="layer '1'"):
        model(x)
    assert torch.is_grad_enabled()


def test_what_pepita_cannot_serve():
    x, _ = data("mlp")
    with pytest.raises(bpfree.errors.UnsupportedLayerError):
        bpfree.attach(nn.Sequential(nn.LayerNorm(4), nn.Tanh()), bpfree.PEPITA())
    with pytest.raises(bpfree.errors.TapSelectionError):
        bpfree.attach(nn.Linear(4, C), bpfree.PEPITA())
    embedded = nn.Sequential(nn.Embedding(9, 4), mlp())
    bpfree.attach(embedded, bpfree.PEPITA())
    with pytest.raises(bpfree.errors.UnsupportedLayerError, match="int64"):
        embedded(torch.zeros(3, dtype=torch.long))
    with pytest.raises(bpfree.errors.ErrorPlacementError, match="error_at"):
        bpfree.attach(nn.Sequential(mlp(), nn.LogSoftmax(1)), bpfree.PEPITA(), example_inputs=x)
    changed = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Hardtanh(inplace=True), nn.Linear(5, C))
    with pytest.raises(bpfree.errors.TapOutputError, match="in place"):
        bpfree.attach(changed, bpfree.PEPITA(), taps="1", example_inputs=x)
    other_loss = mlp()
    bpfree.attach(other_loss, bpfree.PEPITA(output_error="second"))
    with pytest.raises(bpfree.errors.OptionError, match="cross-entropy"):
        F.mse_loss(other_loss(x), torch.ones(len(x), C)).backward()
    narrow, wide = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, C)), mlp()
    state = bpfree.attach(narrow, bpfree.PEPITA(), example_inputs=torch.randn(2, 3)).state_dict()
    bpfree.attach(wide, bpfree.PEPITA()).load_state_dict(state)
    with pytest.raises(bpfree.errors.StateError):
        wide(x)


class Step(torch.autograd.Function):
    """A step, with the gradient of the identity."""

    @staticmethod
    def forward(ctx, x):
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, g):
        return g


class Spikes(nn.Module):
    def forward(self, x):
        return Step.apply(x)


class Dead(nn.ReLU):
    def forward(self, x):
        return super().forward(x - 1000)


def _first_losses(inner, rule, *, targets=None, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), inner, nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    bpfree.attach(net, rule, taps=["1", "3"], **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            classes = torch.arange(7) % 3 if targets is None else targets
            F.cross_entropy(net(torch.randn(7, 5)), classes, reduction="sum").backward()
    return net, [str(warning.message) for warning in caught if "gradient of zero" in str(warning.message)]


@pytest.mark.parametrize(
    "inner", [Spikes(), Dead(), nn.Threshold(100.0, 0.0)], ids=["steps", "dead units", "threshold"]
)
def test_pepita_names_a_layer_whose_activations_do_not_change(inner):
    net, told = _first_losses(inner, bpfree.PEPITA(amplitude=1e-6))
    assert not net[0].weight.grad.any()
    # Layer 2 gets the same input in both passes, so that its activations do not change either. Each is named once.
    assert len(told) == 2
    assert "layer '0' gets a gradient of zero: behind it '1'" in told[0]


@pytest.mark.parametrize(
    ("inner", "rule", "options", "targets"),
    [
        (nn.Tanh, bpfree.PEPITA(), {}, None),
        (Spikes, bpfree.PEPITA(amplitude=5.0), {}, None),
        (Spikes, bpfree.DFA(), {}, None),
        (Spikes, bpfree.PEPITA(amplitude=1e-6), {"verify": False}, None),
        (nn.Tanh, bpfree.PEPITA(), {}, torch.full((7,), -100)),
    ],
    ids=["smooth", "the remedy: a larger amplitude", "the remedy: DFA", "not asked", "no row has a target"],
)
def test_pepita_says_nothing_where_layers_learn_or_no_error_comes(inner, rule, options, targets):
    net, told = _first_losses(inner(), rule, targets=targets, **options)
    assert told == []
    if "verify" not in options and targets is None:
        assert net[0].weight.grad.any()
