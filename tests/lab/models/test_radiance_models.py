"""Radiance fields: sizes, encodings, taps, and gradients by DFA against a form by hand."""

import inspect
import math

import pytest
import torch

import bpfree
from bpfree.lab.errors import SettingsError
from bpfree.lab.models.radiance import NeRF, NeRFNet, NeRFReleased, NeRFTiny, Waves
from bpfree.lab.rendering import Passes, Rays, render


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def some_rays(n=12):
    origins, directions = torch.randn(n, 3), torch.randn(n, 3)
    ones = torch.ones(n, 1)
    return Rays(origins, directions, directions / directions.norm(dim=1, keepdim=True), ones, 3 * ones)


def weights(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "sizes"),
    # 63 and 27 numbers of an encoded point and direction. 4 layers of 128: as counted in the released checkpoints.
    [
        (NeRF(), [63 * 256 + 6 * 256**2 + 319 * 256 + 8 * 256 + 257 + 256 * 257 + 283 * 128 + 128 + 387] * 2),
        (NeRFReleased(), [84_548] * 2),
        (NeRFTiny(), [63 * 128 + 128 + 128 * 129 + 129 * 4]),
    ],
    ids=["paper", "released", "tiny"],
)
def test_sizes(model, sizes):
    assert [weights(net) for net in model.nets.values()] == sizes
    assert weights(model) == sum(sizes)


def test_the_large_model_has_a_wider_fine_net():
    model = NeRF(fine_width=512)
    assert weights(model.coarse) == weights(NeRF().coarse)
    assert {layer.out_features for layer in model.fine.layers} == {512}
    assert model.fine.view.layer.out_features == 256


def test_waves():
    x = torch.randn(4, 3)
    expected = [x]
    for k in range(5):
        expected += [torch.sin(2**k * x), torch.cos(2**k * x)]
    encode = Waves(5)
    torch.testing.assert_close(encode(x), torch.cat(expected, dim=1))
    assert encode.size == 33
    assert torch.equal(Waves(0)(x), x)


def net_by_hand(net, points, directions):
    """What the net computes, written without its modules: raw output, and each tap's output by name."""

    def linear(layer, h):
        return h @ layer.weight.T + layer.bias

    encoded = encoded_by_hand(points, 10)
    h, taps = encoded, {}
    for number, layer in enumerate(net.layers):
        inputs = torch.cat([encoded, h], dim=1) if number in net.skips else h
        h = linear(layer, inputs).clamp(min=0)
        taps[f"activations.{number}"] = h
    if net.view is None:
        return linear(net.out, h), taps
    features = linear(net.view.features, h)
    if net.view.features_activation is not None:
        features = taps["view.features_activation"] = features.clamp(min=0)
    branch = linear(net.view.layer, torch.cat([features, encoded_by_hand(directions, 4)], dim=1)).clamp(min=0)
    taps["view.activation"] = branch
    return torch.cat([linear(net.view.colour, branch), linear(net.out, h)], dim=1), taps


def encoded_by_hand(x, frequencies):
    return torch.cat([x, *(f(2**k * x) for k in range(frequencies) for f in (torch.sin, torch.cos))], dim=1)


NETS = {
    "skip": lambda: NeRFNet(depth=4, width=10, skips=(2,)),
    "released": lambda: NeRFNet(depth=4, width=10, skips=(), released=True),
    "no views": lambda: NeRFNet(depth=2, width=10, skips=(), views=False),
}


@pytest.mark.parametrize("name", NETS)
def test_the_net_is_the_one_by_hand(name):
    net, points, directions = NETS[name](), torch.randn(9, 3), torch.randn(9, 3)
    torch.testing.assert_close(net(points, directions), net_by_hand(net, points, directions)[0])


def test_the_direction_changes_the_colour_and_not_the_density():
    net, points = NETS["skip"](), torch.randn(9, 3)
    one, other = net(points, torch.randn(9, 3)), net(points, torch.randn(9, 3))
    assert torch.equal(one[:, 3], other[:, 3])
    assert (one[:, :3] != other[:, :3]).all()


@pytest.mark.parametrize("name", NETS)
def test_the_error_of_each_point_reaches_every_tap_by_one_matrix(name):
    """DFA by hand: the signal at each tap is e B, and the gradient of a layer that of its own output alone."""
    net, points, directions = NETS[name](), torch.randn(9, 3), torch.randn(9, 3)
    attachment = bpfree.attach(net, bpfree.DFA(), seed=1)
    raw = net(points, directions)
    e = torch.randn_like(raw)
    raw.backward(e)
    _, taps = net_by_hand(net, points, directions)
    assert [site.name for site in attachment.mechanism.sites] == list(taps)
    B = {site.name: attachment.feedback.matrix(site).clone() for site in attachment.mechanism.sites}
    encoded, previous = encoded_by_hand(points, 10), None
    for number, layer in enumerate(net.layers):
        tap = f"activations.{number}"
        h = encoded if previous is None else taps[previous]
        inputs = torch.cat([encoded, h], dim=1) if number in net.skips else h
        signal = e @ B[tap] * (taps[tap] > 0)
        torch.testing.assert_close(layer.weight.grad, signal.T @ inputs)
        torch.testing.assert_close(layer.bias.grad, signal.sum(0))
        previous = tap
    last = taps[previous]
    if net.view is None:
        torch.testing.assert_close(net.out.weight.grad, e.T @ last)
        return
    view, branch = net.view, taps["view.activation"]
    torch.testing.assert_close(net.out.weight.grad, e[:, 3:].T @ last)
    torch.testing.assert_close(view.colour.weight.grad, e[:, :3].T @ branch)
    signal = (e @ B["view.activation"]) * (branch > 0)
    if view.features_activation is None:  # features have no tap: their layer learns through the one behind it
        features = last @ view.features.weight.T + view.features.bias
        carried = signal @ view.layer.weight[:, :10]
    else:
        features = taps["view.features_activation"]
        carried = (e @ B["view.features_activation"]) * (features > 0)
    encoded_directions = encoded_by_hand(directions, 4)
    torch.testing.assert_close(view.layer.weight.grad, signal.T @ torch.cat([features, encoded_directions], dim=1))
    torch.testing.assert_close(view.features.weight.grad, carried.T @ last)


def small(**changes):
    given = {"depth": 3, "width": 8, "skips": (1,), "samples": 6, "fine_samples": 5, "density_bias": 0.5}
    return NeRF(**(given | changes))


def loss_of(model, rays, truth):
    return (model(rays.pack()) - truth[:, None]).square().mean((0, 2)).sum()


def test_each_net_learns_from_its_own_error_alone():
    """The gradients of the pair are those of two nets trained apart on the errors at their own outputs."""
    model, rays, truth = small().eval(), some_rays(), torch.rand(12, 3)
    attachments = model.attach(bpfree.DFA(), seed=3)
    loss_of(model, rays, truth).backward()
    assert not torch.equal(*(attachment.feedback["shared"] for attachment in attachments.values()))
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    for attachment in attachments.values():
        attachment.detach()
    model.zero_grad()
    # The errors at the raw outputs, by autograd through the rendering alone.
    outputs, inputs = [], []

    def keep(net):
        def ask(points, views):
            inputs.append((net, points, views))
            outputs.append(net(points, views).detach().requires_grad_())
            return outputs[-1]

        return ask

    shown = render(rays, keep(model.coarse), keep(model.fine), model.passes, training=False)
    sum((one.colours - truth).square().mean() for one in shown).backward()
    for seed, (raw, (net, points, views)) in enumerate(zip(outputs, inputs, strict=True), start=3):
        bpfree.attach(net, bpfree.DFA(), seed=seed)
        net(points, views).backward(raw.grad)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, found[name], msg=name)


def test_backpropagation_has_no_path_between_the_nets():
    model, rays = small().eval(), some_rays()
    model(rays.pack())[:, 1].sum().backward()
    assert not any(parameter.grad.any() for parameter in model.coarse.parameters())
    assert any(parameter.grad.any() for parameter in model.fine.parameters())


@pytest.mark.parametrize(
    "rule", [bpfree.BP(), bpfree.Shallow(), bpfree.FA(), bpfree.DFA(), bpfree.GrAPE(), bpfree.FDFA()]
)
def test_every_rule_of_the_paper_and_beyond_trains_both_nets(rule):
    model, rays, truth = small(), some_rays(), torch.tensor([0.2, 0.6, 0.9]).expand(12, 3)
    attachments = model.attach(rule)
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer = torch.optim.Adam(
        [*model.parameters(), *(p for one in attachments.values() for p in one.parameters())], lr=1e-2
    )
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = loss_of(model, rays, truth)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    moved = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert sum(moved) == (len(moved) if rule != bpfree.Shallow() else 8)  # two output layers of two nets
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.parametrize("options", [{"streaming": True}, {"window": 2}])
def test_options_of_one_error_serve_a_pair_of_nets(options):
    found = []
    for given in ({}, options):
        torch.manual_seed(1)
        model, rays, truth = small(), some_rays(), torch.rand(12, 3)
        model.attach(bpfree.DFA(), **given)
        loss_of(model, rays, truth).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    same = [torch.allclose(one, other, atol=1e-12) for one, other in zip(*found, strict=True)]
    assert all(same) if options == {"streaming": True} else not all(same)


def test_two_rules_on_two_nets():
    model, rays, truth = small(), some_rays(), torch.rand(12, 3)
    bpfree.attach(model.coarse, bpfree.BP())
    bpfree.attach(model.fine, bpfree.DFA())
    loss_of(model, rays, truth).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("build", [NeRFReleased, NeRFTiny, lambda **bias: NeRF(fine_samples=0, **bias)])
def test_models_begin_with_something_to_see(build):
    """With PyTorch's biases some of them show nothing, and have no gradient."""

    def seen(**bias):
        points, directions = 2 * torch.rand(200, 3) - 1, torch.randn(200, 3)
        shares = []
        for seed in range(10):
            torch.manual_seed(seed)
            with torch.no_grad():
                shares.append(float((build(**bias).coarse(points, directions)[:, 3] > 0).double().mean()))
        return min(shares)

    assert seen() > 0.5
    assert seen(density_bias=None) < 0.05


@pytest.mark.parametrize("dual", [False, True])
@pytest.mark.parametrize("chunk", [1, 40, 10_000])
def test_pictures_are_the_same_in_chunks_of_any_size(chunk, dual):
    model, rays = small(noise=1.0), some_rays()
    shown = model.render(rays, chunk=chunk, dual=dual)
    whole = render(rays, model.coarse, model.fine, model.passes, training=False, dual=dual)[-1]
    for name, value in shown.items():
        torch.testing.assert_close(value, getattr(whole, name))
        assert not value.requires_grad
    if not dual:
        torch.testing.assert_close(shown["colours"], model.eval()(rays.pack())[:, -1])


def test_training_draws_from_the_global_random_state_and_evaluation_does_not():
    model, rays = small(noise=1.0), some_rays()
    state = torch.get_rng_state()
    model.eval()(rays.pack())
    model.render(rays)
    assert torch.equal(torch.get_rng_state(), state)
    one = model.train()(rays.pack())
    torch.set_rng_state(state)
    assert torch.equal(model(rays.pack()), one)
    assert not torch.equal(model(rays.pack()), one)


def test_the_table_of_an_attachment_shows_each_non_linearity():
    model = NeRFReleased()
    attachments = model.attach(bpfree.DFA())
    model(some_rays().pack())
    table = str(attachments["fine"])
    for row in ("activations.0-3", "view.features_activation", "view.activation"):
        assert row in table
    assert "view.colour, out" in table


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"shape": (3, 32, 32)}, "rays"),
        ({"depth": 0}, "depth"),
        ({"width": 1}, "width"),
        ({"skips": (0,)}, "skips"),
        ({"skips": (8,)}, "skips"),
        ({"samples": 2}, "samples"),
        ({"fine_samples": -1}, "fine_samples"),
        ({"noise": math.nan}, "noise"),
    ],
)
def test_arguments_that_mean_nothing(arguments, named):
    with pytest.raises(SettingsError, match=named):
        NeRF(**arguments)


def test_defaults_are_the_papers():
    defaults = {name: entry.default for name, entry in inspect.signature(NeRF).parameters.items()}
    assert (defaults["depth"], defaults["width"], defaults["skips"]) == (8, 256, (5,))
    assert NeRF().passes == Passes(samples=64, fine_samples=128, noise=0.0, background=1.0)
    tiny = NeRFTiny()
    assert (tiny.passes.samples, tiny.passes.fine_samples, tiny.fine) == (32, 0, None)
