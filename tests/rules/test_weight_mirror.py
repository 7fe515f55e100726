"""Weight mirrors: what B goes to, and how much it scatters, by the formula for E[y xi^T]."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from support.by_hand import TanhMLP, assert_same, softmax_error
from support.models import MODELS, batch, convnet, mlp
from support.rule_contract import Subject, assert_equal, assert_rule_serves


def step(model, x, y, optimizer=None):
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    if optimizer:
        optimizer.step()
    return [parameter.grad.clone() for parameter in model.parameters()]


def fan_in_squares(layer):
    """For each entry of W, the sum of the squares of those weights that feed the same number y, one by one."""
    W = layer.weight.detach()
    if isinstance(layer, nn.ConvTranspose2d):
        size = len(W) // layer.groups
        found = torch.empty_like(W)
        for group in range(layer.groups):
            rows = slice(group * size, (group + 1) * size)
            found[rows] = W[rows].square().sum(0)
        return found
    return torch.stack([row.square().sum().expand(row.shape) for row in W])


LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (2, 6)),
    "conv1d, reflect": (lambda: nn.Conv1d(3, 4, 3, padding=2, padding_mode="reflect"), (2, 3, 6)),
    "conv2d, padding and stride": (lambda: nn.Conv2d(3, 4, 3, padding=2, stride=2), (2, 3, 6, 6)),
    "conv2d, groups and dilation": (
        lambda: nn.Conv2d(4, 6, (2, 3), groups=2, dilation=2, padding="same"),
        (2, 4, 6, 6),
    ),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, bias=False), (2, 2, 4, 5, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), (2, 4, 6, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 6, 6)),
}


def attached(kind, rule, seed=3):
    """The layer on top of something that learns, so that it has a B."""
    make, shape = LAYERS[kind]
    model = nn.Sequential(nn.Linear(shape[-1], shape[-1]), make())
    return bpfree.attach(model, rule, seed=seed, example_inputs=torch.randn(shape)), model[1]


@pytest.mark.parametrize("kind", LAYERS)
def test_one_step_estimates_every_weight_without_bias_and_scatters_as_it_must(double, kind):
    # With decay 1 each step's B is the estimate mean_k y_k xi_k^T alone. For xi of variance 1 and fourth moment k,
    # E = W_ab and the variance is (sum_j W_aj^2 + (k - 2) W_ab^2) / n; k = 9/5 for uniform noise.
    n, repeats = 8, 2000
    attachment, layer = attached(kind, bpfree.WeightMirror(rate=1.0, decay=1.0, batch=n))
    estimates = []
    for _ in range(repeats):
        attachment.mechanism.mirror(1)
        estimates.append(attachment.feedback["1"].clone())
    estimates, W = torch.stack(estimates), layer.weight.detach()
    variance = (fan_in_squares(layer) - 0.2 * W.square()) / n
    scores = (estimates.mean(0) - W) / (variance / repeats).sqrt()
    assert scores.abs().max() < 5
    # A sample variance of 2,000 is off by 3 % (one deviation; the numbers are nearly normal), a mean of many by less.
    ratio = estimates.var(0) / variance
    assert ratio.min() > 0.8
    assert ratio.max() < 1.25
    assert float(ratio.mean()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("rate", "decay"), [(0.02, 0.02), (0.03, 0.01), (0.01, 0.5)])
def test_b_goes_to_rate_over_decay_times_w_with_the_noise_of_an_average(double, rate, decay):
    n, steps = 16, 1500
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 60))
    attachment = bpfree.attach(
        model, bpfree.WeightMirror(rate=rate, decay=decay, batch=n), example_inputs=torch.randn(2, 40)
    )
    attachment.mechanism.mirror(steps)
    W = model[1].weight.detach()
    one = (fan_in_squares(model[1]) - 0.2 * W.square()) / n
    scores = (attachment.feedback["1"] - rate / decay * W) / (one * rate**2 / (decay * (2 - decay))).sqrt()
    # 2,400 numbers of variance 1: their mean is off by .02, their mean square by .03 and more, being dependent.
    assert abs(float(scores.mean())) < 0.1
    assert float(scores.square().mean()) == pytest.approx(1, abs=0.15)


def test_the_first_b_is_feedback_alignments_and_fades_by_the_decay(double):
    x, _ = batch()
    model = mlp()
    other = copy.deepcopy(model)
    fixed = bpfree.attach(other, bpfree.FA(), seed=3, example_inputs=x)
    attachment = bpfree.attach(model, bpfree.WeightMirror(decay=0.1), seed=3, example_inputs=x)
    assert list(attachment.feedback) == list(fixed.feedback) == ["2", "4"]
    assert_equal(attachment.feedback.buffers(), fixed.feedback.buffers())
    with torch.no_grad():
        model[2].weight.zero_()
    attachment.mechanism.mirror(7)  # y = 0: only the decay is left
    assert_same([attachment.feedback["2"]], [fixed.feedback["2"] * 0.9**7])


def cosine(a, b):
    return float(F.cosine_similarity(a.detach().flatten(), b.flatten(), 0))


@pytest.mark.parametrize("name", MODELS)
def test_during_training_b_follows_w(name):
    x, y = batch(name, 32)
    model = MODELS[name][0]()
    rule = bpfree.WeightMirror(rate=0.05, decay=0.05, batch=128)
    attachment = bpfree.attach(model, rule, example_inputs=x)
    weights = {name: model.get_submodule(name).weight for name in attachment.feedback}
    before = [cosine(weights[name], attachment.feedback[name]) for name in weights]
    first = [W.detach().clone() for W in weights.values()]
    assert max(before) < 0.5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(200):
        step(model, x, y, optimizer)
    assert min(cosine(weights[name].detach(), attachment.feedback[name]) for name in weights) > 0.95
    assert all((W - start).abs().max() > 0.01 for W, start in zip(weights.values(), first, strict=True))


def test_a_mirror_step_uses_neither_biases_nor_other_layers(double):
    x, _ = batch()
    model = mlp()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (twin[0], twin[4]):
            layer.weight.normal_()
        for layer in (twin[0], twin[2], twin[4]):
            layer.bias.normal_()
    found = []
    for net in (model, twin):
        attachment = bpfree.attach(net, bpfree.WeightMirror(), seed=3, example_inputs=x)
        attachment.mechanism.mirror(3)
        found.append(attachment.feedback["2"])
    assert torch.equal(*found)


def test_gradients_are_feedback_alignments_with_this_b_written_out_by_hand(double):
    x, y = batch()
    model = mlp()
    attachment = bpfree.attach(model, bpfree.WeightMirror(rate=0.2, decay=0.1), example_inputs=x)
    attachment.mechanism.mirror(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        hand = TanhMLP(model)
        found = step(model, x, y, optimizer)
        B = [attachment.feedback["2"], attachment.feedback["4"]]
        hidden, output = hand.forward(x)
        e = softmax_error(output, y)
        assert_same(found, hand.gradients(hidden, e, hand.layerwise_signals(hidden, e, [None, *B])))


def test_mirror_steps_run_before_every_training_pass_but_the_first(double):
    x, y = batch()
    model = mlp()
    attachment = bpfree.attach(model, bpfree.WeightMirror(steps=2), example_inputs=x)
    B = attachment.feedback["2"]

    def moved(run):
        before = B.clone()
        run()
        return not torch.equal(attachment.feedback["2"], before)

    assert not moved(lambda: step(model, x, y))
    assert moved(lambda: step(model, x, y))
    with attachment.paused():
        assert not moved(lambda: step(model, x, y))
    with torch.no_grad():
        assert not moved(lambda: model(x))
    assert not moved(lambda: bpfree.alignment(attachment, lambda: F.cross_entropy(model(x), y)))
    from torch.utils.checkpoint import checkpoint

    moved(lambda: F.cross_entropy(checkpoint(model, x, use_reentrant=False), y).backward())
    # Two in the second step, two with the checkpointed model, whose second run is none of its own.
    assert attachment.feedback.numbers["mirrored"] == 4
    attachment.detach()
    assert not moved(lambda: step(model, x, y))


def test_without_automatic_steps_b_moves_only_on_demand():
    x, y = batch()
    model = mlp()
    attachment = bpfree.attach(model, bpfree.WeightMirror(steps=0), example_inputs=x)
    before = attachment.feedback["2"].clone()
    for _ in range(3):
        step(model, x, y)
    assert torch.equal(attachment.feedback["2"], before)
    attachment.mechanism.mirror(1)
    assert not torch.equal(attachment.feedback["2"], before)


def test_micro_batches_add_up(double):
    x, y = batch()
    model = mlp()
    attachment = bpfree.attach(model, bpfree.WeightMirror(steps=0), example_inputs=x)
    attachment.mechanism.mirror(3)
    whole = step(model, x, y)
    model.zero_grad()
    for part in (slice(0, 5), slice(5, 10)):
        (F.cross_entropy(model(x[part]), y[part]) / 2).backward()
    assert_same([parameter.grad for parameter in model.parameters()], whole)


def test_it_reads_no_other_random_number_and_repeats():
    x, y = batch()

    def found(example):
        torch.manual_seed(1)
        model = mlp()
        attachment = bpfree.attach(model, bpfree.WeightMirror(), seed=9, example_inputs=x if example else None)
        for _ in range(3):
            step(model, x, y)
        return [attachment.feedback["2"], torch.rand(3)]

    torch.manual_seed(1)
    mlp()
    expected = torch.rand(3)
    assert_equal(found(True), found(False))
    assert torch.equal(found(True)[1], expected)


@pytest.mark.parametrize("example", [True, False])
def test_a_restored_run_continues_bit_for_bit(example):
    x, y = batch()

    def start(seed):
        torch.manual_seed(seed)
        model = mlp()
        attachment = bpfree.attach(model, bpfree.WeightMirror(), seed=seed, example_inputs=x if example else None)
        return model, attachment, torch.optim.Adam(model.parameters(), lr=0.01)

    parts = start(1)
    for _ in range(3):
        step(parts[0], x, y, parts[2])
    parts[1].mechanism.mirror(2)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in parts], file)
    for _ in range(3):
        step(parts[0], x, y, parts[2])

    again = start(2)
    file.seek(0)
    for part, state in zip(again, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    for _ in range(3):
        step(again[0], x, y, again[2])
    assert_equal(again[0].parameters(), parts[0].parameters())
    assert_equal(again[1].buffers(), parts[1].buffers())


def test_a_copy_mirrors_its_own_weights():
    x, y = batch()
    model = mlp()
    attachment = bpfree.attach(model, bpfree.WeightMirror(), example_inputs=x)
    twin, other = copy.deepcopy(nn.ModuleList([model, attachment]))
    before = attachment.feedback["2"].clone()
    for _ in range(3):
        step(twin, x, y)
    assert torch.equal(attachment.feedback["2"], before)
    for _ in range(3):
        step(model, x, y)
    assert torch.equal(attachment.feedback["2"], other.feedback["2"])


def test_autocast_and_channels_last_change_nothing():
    x, y = batch("convnet")
    model = convnet()
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
    plain = bpfree.attach(model, bpfree.WeightMirror(), example_inputs=x)
    other = bpfree.attach(twin, bpfree.WeightMirror(), example_inputs=x).to(memory_format=torch.channels_last)
    assert not other.feedback["2"].is_contiguous()
    for _ in range(3):
        step(model, x, y)
        with torch.autocast("cpu", torch.bfloat16):
            step(twin, x, y)
    for name in plain.feedback:
        torch.testing.assert_close(plain.feedback[name], other.feedback[name], rtol=1e-6, atol=1e-7)


def test_a_computed_weight_is_mirrored():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 6), nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)))
    attachment = bpfree.attach(model, bpfree.WeightMirror(), example_inputs=torch.randn(2, 6))
    attachment.mechanism.mirror(500)
    assert cosine(attachment.feedback["1"], model[1].weight.detach()) > 0.99


@pytest.mark.parametrize("name", MODELS)
def test_the_contract(name):
    x, y = batch(name)
    subject = Subject(MODELS[name][0], lambda model: model(x), lambda model: F.cross_entropy(model(x), y), y)
    assert_rule_serves(subject, bpfree.WeightMirror())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rate": 0.0}, "rate=0.0"),
        ({"rate": float("inf")}, "rate=inf"),
        ({"rate": float("nan")}, "rate=nan"),
        ({"decay": 0.0}, r"decay=0.0 is not in \(0, 1\]"),
        ({"decay": 1.5}, "decay=1.5"),
        ({"batch": 0}, "batch=0"),
        ({"batch": 1.5}, "batch=1.5"),
        ({"steps": -1}, "steps=-1"),
        ({"steps": 1.5}, "steps=1.5"),
        ({"distribution": "uniforn"}, "uniform"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, said):
    with pytest.raises(bpfree.errors.OptionError, match=said):
        bpfree.WeightMirror(**options)


def test_mirroring_needs_something_to_mirror():
    attachment = bpfree.attach(mlp(), bpfree.WeightMirror())
    with pytest.raises(bpfree.errors.StateError, match="example_inputs"):
        attachment.mechanism.mirror(1)
    with pytest.raises(bpfree.errors.OptionError, match="steps=-1"):
        attachment.mechanism.mirror(-1)
