"""Layerwise rules and PEPITA on models that change after attach, or that are called without their own call."""

import copy
import warnings
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import bpfree
from bpfree.module_tree import ModuleTree
from support.by_hand import TanhMLP, assert_same, softmax_error
from support.models import CLASSES, batch, mlp

WEIGHTS = bpfree.ForwardGradient("weights")


def gradients(model, x, y):
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def by_hand(model, x, y, backward_weights):
    hand = TanhMLP(model)
    hidden, output = hand.forward(x)
    e = softmax_error(output, y)
    return hand.gradients(hidden, e, hand.layerwise_signals(hidden, e, [None, *backward_weights]))


# -- the tree ----------------------------------------------------------------------------------------------------------


def test_a_tree_sees_what_comes_goes_and_is_replaced():
    def fresh():
        return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Tanh()))

    def seen(change):
        model = fresh()
        tree = ModuleTree(model)
        assert not tree.has_changed()
        change(model)
        return tree.has_changed()

    assert seen(lambda model: model.append(nn.Tanh()))
    assert seen(lambda model: model.pop(0))
    assert seen(lambda model: model[1].__setitem__(0, nn.Linear(2, 2)))
    assert seen(lambda model: model[1][0].add_module("adapter", nn.Linear(2, 2)))  # into a leaf
    assert seen(lambda model: parametrizations.weight_norm(model[0]))
    assert not seen(lambda model: model.train(False))
    assert not seen(lambda model: nn.init.zeros_(model[0].weight))


# -- layerwise rules ---------------------------------------------------------------------------------------------------


def test_a_new_head_gets_a_b_of_its_own(double):
    x, y = batch("mlp")
    model = mlp()
    attachment = bpfree.attach(model, bpfree.FA("normal"), seed=4, example_inputs=x)
    old = attachment.feedback["4"].clone()
    model[4] = nn.Linear(9, CLASSES)
    nn.init.normal_(model[4].weight, std=3.0)
    with pytest.warns(bpfree.BpfreeWarning, match=r"layer '4' came into the model after attach: FA"):
        found = gradients(model, x, y)
    B = attachment.feedback["4"]
    assert_same(found, by_hand(model, x, y, [attachment.feedback["2"], B]))
    # The same numbers as one that was there from the beginning: drawn by name, with the new weights' deviation.
    twin = mlp()
    twin[4].load_state_dict(model[4].state_dict())
    assert torch.equal(B, bpfree.attach(twin, bpfree.FA("normal"), seed=4, example_inputs=x).feedback["4"])
    assert not torch.allclose(B, old)
    with warnings.catch_warnings():
        warnings.simplefilter("error", bpfree.BpfreeWarning)
        gradients(model, x, y)


def test_an_adapter_between_two_layers_and_a_layer_that_goes(double):
    x, y = batch("mlp")
    model = mlp()
    attachment = bpfree.attach(model, bpfree.FA(), example_inputs=x)
    kept = attachment.feedback["4"].clone()
    model[2] = nn.Sequential(nn.Linear(7, 2), nn.Linear(2, 9))
    with pytest.warns(bpfree.BpfreeWarning, match=r"'2\.0', '2\.1' came .* '2' is not in the model any more"):
        found = gradients(model, x, y)
    assert list(attachment.feedback) == ["4", "2.0", "2.1"]
    assert torch.equal(attachment.feedback["4"], kept)
    for name in attachment.feedback:
        attachment.feedback[name].copy_(model.get_submodule(name).weight.detach())
    with attachment.paused():
        exact = gradients(model, x, y)
    assert not torch.allclose(found[0], exact[0])
    assert_same(gradients(model, x, y), exact)
    attachment.detach()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_kolen_pollack_says_that_the_new_b_is_for_the_optimizer(double):
    x, y = batch("mlp")
    model = mlp()
    attachment = bpfree.attach(model, bpfree.KolenPollack(), example_inputs=x)
    model[2] = nn.Linear(7, 9)
    with pytest.warns(bpfree.BpfreeWarning, match=r"'2' came .* make the optimizer anew"):
        gradients(model, x, y)
    optimizer = torch.optim.SGD([*model.parameters(), *attachment.parameters()], lr=0.1, weight_decay=0.5)
    gap = (model[2].weight - attachment.feedback["2"]).detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error", bpfree.BpfreeWarning)
        for _ in range(3):
            gradients(model, x, y)
            optimizer.step()
    assert_same([(model[2].weight - attachment.feedback["2"]).detach()], [gap * 0.95**3])


def test_where_the_error_is_taken_is_followed(double):
    class Headed(nn.Module):
        def __init__(self):
            super().__init__()
            self.below, self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, CLASSES)

        def forward(self, x):
            return self.head(self.body(self.below(x).tanh()).tanh())

    x, y = batch("mlp")
    model = Headed()
    attachment = bpfree.attach(model, bpfree.FA(), error_at="body", example_inputs=x)
    model.body = nn.Linear(5, 5)
    with pytest.warns(bpfree.BpfreeWarning, match="'body' came"):
        found = gradients(model, x, y)
    with attachment.paused():
        exact = gradients(model, x, y)
    assert_same(found[2:], exact[2:])  # the head is above the error's place still
    assert not torch.allclose(found[0], exact[0])
    del model.body
    model.body = None
    with pytest.raises(bpfree.errors.ErrorPlacementError, match=r"error_at='body'.*no such module any more"):
        model(x)


def test_evaluation_takes_nothing_in():
    x, _ = batch("mlp")
    model = mlp()
    attachment = bpfree.attach(model, bpfree.FA(), example_inputs=x)
    model[4] = nn.Linear(9, CLASSES)
    before = attachment.feedback["4"]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", bpfree.BpfreeWarning)
        model(x)
    assert attachment.feedback["4"] is before


# -- PEPITA ------------------------------------------------------------------------------------------------------------


def test_pepita_trains_a_layer_that_came(double):
    x, y = batch("mlp")
    model = mlp()
    bpfree.attach(model, bpfree.PEPITA(), seed=1)
    gradients(model, x, y)
    model[2], model[3] = nn.Linear(7, 9), nn.Tanh()
    with pytest.warns(bpfree.BpfreeWarning, match="layer '2' came"):
        found = gradients(model, x, y)
    other = mlp()
    other.load_state_dict(model.state_dict())
    bpfree.attach(other, bpfree.PEPITA(), seed=1)
    assert_same(found, gradients(other, x, y))


@pytest.mark.parametrize("rule", [bpfree.PEPITA(), WEIGHTS], ids=str)
def test_the_error_s_place_of_a_pass_without_a_graph_is_followed(rule):
    x, y = batch("mlp")
    model = nn.Sequential(mlp(), nn.Identity())
    bpfree.attach(model, rule, error_at="0", taps=["0.1", "0.3"])
    gradients(model, x, y)
    model[0] = mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bpfree.BpfreeWarning)
        found = gradients(model, x, y)
    assert all(gradient is not None for gradient in found)
    # A batch of another size is looked at anew.
    assert all(gradient is not None for gradient in gradients(model, x[:7], y[:7]))


# -- calls of the model that are none ----------------------------------------------------------------------------------


class Recommends(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.act, self.two = nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.two(self.act(self.one(x)))

    def loss(self, x, y):
        return F.cross_entropy(self.forward(x), y)

    def score(self, x):
        return self.two(self.act(self.one(x)))


CALLS = {
    "forward": lambda model, x, y: F.cross_entropy(model.forward(x), y),
    "loss": lambda model, x, y: model.loss(x, y),
    "score": lambda model, x, y: F.cross_entropy(model.score(x), y),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("rule", [bpfree.PEPITA(), WEIGHTS], ids=str)
def test_what_runs_layers_without_a_call_of_the_model_is_named_once(rule, call):
    model, (x, y) = Recommends(), batch("mlp")
    attachment = bpfree.attach(model, rule)
    with warnings.catch_warnings():
        warnings.simplefilter("error", bpfree.BpfreeWarning)
        with torch.no_grad():
            CALLS[call](model, x, y)
        with attachment.paused():
            CALLS[call](model, x, y)
        F.cross_entropy(model(x), y).backward()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            CALLS[call](model, x, y).backward()
    (warning,) = [str(warning.message) for warning in told if warning.category is bpfree.BpfreeWarning]
    assert "layer 'one'" in warning
    assert f"Recommends.{call}(...)" in warning


def test_a_part_that_is_called_alone_is_named_as_one():
    model, (x, _) = Recommends(), batch("mlp")
    bpfree.attach(model, bpfree.PEPITA())
    with pytest.warns(bpfree.BpfreeWarning, match="layer 'one' was reached by a call of a part of the model"):
        model.one(x)


def test_layerwise_rules_act_without_a_call_and_draw_anew(double):
    model, (x, y) = Recommends(), batch("mlp")
    attachment = bpfree.attach(model, bpfree.SignSymmetry("batch"))

    def step(run):
        model.zero_grad()
        run(model, x, y).backward()
        return model.one.weight.grad.clone()

    found = [step(CALLS[call]) for call in ("forward", "loss", "forward")]
    assert attachment.feedback.numbers["passes"] == 3
    assert not any(torch.equal(found[0], other) for other in found[1:])
    twin = Recommends()
    twin.load_state_dict(model.state_dict())
    bpfree.attach(twin, bpfree.SignSymmetry("batch"))
    expected = []
    for _ in range(3):
        twin.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        expected.append(twin.one.weight.grad.clone())
    assert_same(found, expected)


class Unrolled(Recommends):
    """Calls one of its layers several times in a pass, whichever method runs it."""

    def __init__(self):
        super().__init__()
        self.again = nn.Linear(5, 5)

    def forward(self, x):
        h = self.act(self.one(x))
        for _ in range(3):
            h = self.act(self.again(h))
        return self.two(h)


@pytest.mark.parametrize("copied", [False, True], ids=["", "copied in between"])
@pytest.mark.parametrize("rule", [bpfree.SignSymmetry("batch"), bpfree.WeightMirror(), bpfree.FA()], ids=str)
def test_a_layer_that_is_called_again_begins_no_pass_of_its_own(double, rule, copied):
    torch.manual_seed(0)
    models, (x, y) = [Unrolled()], batch("mlp")
    models.append(copy.deepcopy(models[0]))
    attached = [bpfree.attach(model, rule) for model in models]
    for _ in range(3):
        if copied:
            models, attached = copy.deepcopy((models, attached))
        for model, run in zip(
            models, (CALLS["forward"], lambda model, x, y: F.cross_entropy(model(x), y)), strict=True
        ):
            model.zero_grad()
            run(model, x, y).backward()
        assert_same(*([parameter.grad for parameter in model.parameters()] for model in models))


@pytest.mark.parametrize("call", ["forward", "loss"])
@pytest.mark.parametrize("rule", [bpfree.FA(), bpfree.SignSymmetry("batch"), bpfree.WeightMirror()], ids=str)
def test_a_new_layer_that_may_have_run_without_b_is_refused_once(double, rule, call):
    model, (x, y) = Unrolled(), batch("mlp")
    attachment = bpfree.attach(model, rule)
    CALLS[call](model, x, y).backward()
    model.again = nn.Linear(5, 5)
    model.zero_grad()
    with pytest.raises(bpfree.errors.VerificationError, match=r"layer 'one'.*run this pass again"), _untold():
        CALLS[call](model, x, y)
    assert all(parameter.grad is None for parameter in model.parameters())
    CALLS[call](model, x, y).backward()
    assert "again" in attachment.feedback


@contextmanager
def _untold():
    """Within this context the warning about the new layer is not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bpfree.BpfreeWarning)
        yield


def test_what_lies_above_the_error_is_exact_without_a_call(double):
    model, (x, y) = Recommends(), batch("mlp")
    bpfree.attach(model, bpfree.FA(), error_at="act")
    model.loss(x, y).backward()
    found = model.one.weight.grad.clone()
    model.zero_grad()
    e = softmax_error(model(x).detach(), y)
    h = torch.tanh(model.one(x)).detach()
    # Above 'act' the head passes its ordinary gradient, and the first layer's input needs none.
    assert_same([found], [((e @ model.two.weight.detach()) * (1 - h**2)).T @ x])


# -- arguments by name -------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.act, self.two = nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES)

    def forward(self, x, scale, *, shift=0.0):
        return self.two(self.act(self.one(x) * scale + shift))


def test_the_order_of_keyword_arguments_does_not_matter(double):
    model, (x, y) = Scaled(), batch("mlp")
    scale, shift = torch.rand(10, 1), torch.rand(10, 1)
    bpfree.attach(model, bpfree.PEPITA())
    ways = [((x, scale), {"shift": shift}), ((), {"shift": shift, "scale": scale, "x": x})]
    ways.append(((), {"x": x, "shift": shift, "scale": scale}))
    found = []
    for args, kwargs in ways:
        model.zero_grad()
        F.cross_entropy(model(*args, **kwargs), y).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


def test_layers_called_by_name_in_any_order(double):
    class Gated(nn.Linear):
        def forward(self, values, gate=None):
            return super().forward(values) * gate

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.below, self.layer = nn.Linear(6, 6), Gated(6, 4)

        def forward(self, x):
            return self.layer(gate=torch.full((4,), 2.0), values=self.below(x))

    net, x, e = Net(), torch.randn(5, 6), torch.randn(5, 4)
    attachment = bpfree.attach(net, bpfree.FA())
    (net(x) * e).sum().backward()
    assert_same([net.below.weight.grad], [(2 * e @ attachment.feedback["layer"]).T @ x])


def test_pepita_cannot_choose_among_several_nameless_arguments():
    class Open(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, **named):
            return self.inner(named["x"] + named["z"])

    model, (x, _) = Open(), batch("mlp")
    bpfree.attach(model, bpfree.PEPITA())
    with pytest.raises(bpfree.errors.UnsupportedLayerError, match=r"as \*\*kwargs.*by position"):
        model(z=torch.zeros(()), x=x)
