"""Attaching, detaching, saving: what a rule leaves and does not leave in a model."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree import errors

RULES = [
    bpfree.BP(),
    bpfree.Shallow(),
    bpfree.DFA(),
    bpfree.DRTP(),
    bpfree.FA(),
    bpfree.SignSymmetry("batch"),
    bpfree.GrAPE(),
    bpfree.FDFA(every=2),
    bpfree.LMS(),
    bpfree.DKP(),
    bpfree.KolenPollack(),
    bpfree.WeightMirror(),
    bpfree.PEPITA(),
    bpfree.ForwardGradient("activations"),
    bpfree.ForwardGradient("weights"),
]
by_name = pytest.mark.parametrize("rule", RULES, ids=str)


class Reshaped(nn.Module):
    def forward(self, x):
        return x.reshape(len(x), 2, 2)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.factor * x


def network():
    return nn.Sequential(
        nn.Linear(6, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(16, 12),
        nn.Tanh(),
        nn.Linear(12, 4),
    )


def batch():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(8, 6, generator=generator), torch.randint(0, 4, (8,), generator=generator)


def step(model, attachment, optimizer=None):
    x, y = batch()
    attachment.targets(y)
    if optimizer:
        optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    if optimizer:
        optimizer.step()


def contents(model):
    """Everything that could hold a hook or an attribute, for every module."""
    return {name: {key: repr(value) for key, value in vars(module).items()} for name, module in model.named_modules()}


@by_name
def test_after_detach_nothing_is_left(rule):
    model = network()
    before, keys, kind = contents(model), list(model.state_dict()), type(model)
    attachment = bpfree.attach(model, rule)
    assert (list(model.state_dict()), type(model)) == (keys, kind)
    model.eval()
    step(model, attachment)
    model.train()
    attachment.detach()
    attachment.detach()
    model.zero_grad()
    after = contents(model)
    assert after == before
    fresh = network()
    fresh.load_state_dict(model.state_dict())
    fresh.eval(), model.eval()
    x, y = batch()
    for net in (model, fresh):
        F.cross_entropy(net(x), y).backward()
    for ours, theirs in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


@by_name
def test_attaching_changes_no_other_random_number(rule):
    def draws(attached):
        torch.manual_seed(1)
        model = network()
        if attached:
            attachment = bpfree.attach(model, rule, example_inputs=batch()[0])
            step(model, attachment)
        else:
            x, y = batch()
            F.cross_entropy(model(x), y).backward()
        return torch.rand(5)

    assert torch.equal(draws(True), draws(False))


@by_name
def test_shapes_found_at_once_or_later_give_the_same_numbers(rule):
    results = []
    for example in (None, batch()[0]):
        torch.manual_seed(1)
        model = network()
        attachment = bpfree.attach(model, rule, seed=9, example_inputs=example)
        step(model, attachment)
        results.append([parameter.grad for parameter in model.parameters()] + list(model.buffers()))
    for ours, theirs in zip(*results, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


def test_example_inputs_may_be_arguments_or_keywords():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.tanh, self.two = nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)

        def forward(self, a, b):
            return self.two(self.tanh(self.one(a + b)))

    model, x = Two(), torch.randn(2, 3)
    for inputs in ((x, x), {"a": x, "b": x}):
        with bpfree.attach(model, bpfree.DFA(), example_inputs=inputs) as attachment:
            assert attachment.feedback["shared"].shape == (2, 4)


def test_seeds_differ_and_repeat():
    def drawn(seed):
        with bpfree.attach(network(), bpfree.DFA(), seed=seed, example_inputs=batch()[0]) as attachment:
            return attachment.feedback["shared"].clone()

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_without_gradients_the_model_runs_without_a_trace():
    model = network().eval()
    x, _ = batch()
    plain = model(x)
    attachment = bpfree.attach(model, bpfree.DFA())
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(model(x), plain)
    assert attachment.mechanism.sites == ()


@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.FA()], ids=str)
def test_paused_is_plain_autograd(rule):
    model = network().eval()
    x, y = batch()
    F.cross_entropy(model(x), y).backward()
    exact = [parameter.grad.clone() for parameter in model.parameters()]
    attachment = bpfree.attach(model, rule)
    model.zero_grad()
    with attachment.paused():
        F.cross_entropy(model(x), y).backward()
    for parameter, expected in zip(model.parameters(), exact, strict=True):
        assert torch.equal(parameter.grad, expected)


def test_regenerated_feedback_is_restored_by_its_seed():
    rule = bpfree.DFA(feedback=bpfree.Feedback(stored=False))
    first = bpfree.attach(network(), rule, seed=1, example_inputs=batch()[0])
    second = bpfree.attach(network(), rule, seed=2, example_inputs=batch()[0])
    second.load_state_dict(first.state_dict())
    sites = first.mechanism.sites
    error = torch.randn(3, 4)
    for ours, theirs in zip(second.feedback(error, sites), first.feedback(error, sites), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (bpfree.DFA(), {"seed": 1.5}),
        (bpfree.DFA(), {"seed": "a"}),
        (bpfree.BP(), {"seed": 1.5}),
        (bpfree.DFA(), {"batch_dims": 1.5}),
        (bpfree.DFA(), {"threads": 1.5}),
        (bpfree.DFA(), {"threads": "2"}),
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused_and_leave_nothing(rule, options):
    model = network()
    before = contents(model)
    with pytest.raises(errors.OptionError, match=f"^{next(iter(options))}="):
        bpfree.attach(model, rule, **options)
    assert contents(model) == before
    bpfree.attach(model, bpfree.DFA())  # and it is free for another rule


def test_mirror_steps_are_whole_numbers():
    attachment = bpfree.attach(network(), bpfree.WeightMirror(), example_inputs=batch()[0])
    drawn = {name: value.clone() for name, value in attachment.state_dict().items()}
    with pytest.raises(errors.OptionError, match=r"steps=1\.5"):
        attachment.mirror(1.5)
    for name, value in attachment.state_dict().items():
        assert torch.equal(value, drawn[name])


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        (bpfree.DFA(), "shared"),
        (bpfree.DFA(feedback=bpfree.Feedback(shared=False)), "body.1:12 act:5"),
        (bpfree.DFA(feedback=bpfree.Feedback(shared=False, modes=2)), "body.1:3x2 act:5"),
        (bpfree.FDFA(), "body.1:12 act:5"),
        (bpfree.FDFA(stepped_by="optimizer"), "body.1 act"),
        (bpfree.DKP(), "body.1 act"),
        (bpfree.FA(), "fc head"),
        (bpfree.WeightMirror(), "fc head"),
        (bpfree.PEPITA(), "F"),
    ],
    ids=str,
)
def test_feedback_has_the_names_that_are_documented(rule, names):
    # Three channels at four positions, then five features.
    parts = {"body": nn.Sequential(nn.Conv1d(1, 3, 1), nn.Tanh()), "flat": nn.Flatten()}
    parts |= {"fc": nn.Linear(12, 5), "act": nn.Tanh(), "head": nn.Linear(5, 2)}
    model = nn.Sequential(OrderedDict(parts))
    attachment = bpfree.attach(model, rule, example_inputs=torch.randn(2, 1, 4))
    assert set(attachment.feedback) == set(names.split())


def test_it_can_be_a_submodule_of_what_trains():
    class Trainer(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = network()
            self.attachment = bpfree.attach(self.model, bpfree.DFA(), example_inputs=batch()[0])

    trainer = Trainer()
    weights = sum(parameter.numel() for parameter in trainer.model.parameters())
    assert sum(parameter.numel() for parameter in trainer.parameters()) == weights
    state = trainer.state_dict()
    assert not any(key.startswith("attachment.") and "weight" in key for key in state)
    other = Trainer()
    other.attachment.feedback["shared"].zero_()
    other.load_state_dict(state)
    assert torch.equal(other.attachment.feedback["shared"], trainer.attachment.feedback["shared"])
    assert trainer.double().attachment.feedback["shared"].dtype == torch.float64


def test_a_copied_model_has_a_rule_of_its_own():
    model = network()
    bpfree.attach(model, bpfree.DFA(), example_inputs=batch()[0])
    twin = copy.deepcopy(model)
    x, y = batch()
    torch.manual_seed(1)
    F.cross_entropy(twin(x), y).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.manual_seed(1)
    F.cross_entropy(model(x), y).backward()
    for ours, copied in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, copied.grad)
    (copied,) = bpfree.attachments(twin)
    assert copied.model is twin
    with pytest.raises(errors.AlreadyAttachedError, match=r"the model has DFA\(\) already.*bpfree.detach_all\(model\)"):
        bpfree.attach(twin, bpfree.FA())


def test_a_copy_with_its_attachment_can_be_detached():
    model = network()
    twin, attachment = copy.deepcopy((model, bpfree.attach(model, bpfree.DFA())))
    attachment.detach()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in twin.modules())
    bpfree.attach(twin, bpfree.FA())


class CopiesItself(nn.Linear):
    """As layers of some libraries do: its copy has its weights, and none of its hooks."""

    def __deepcopy__(self, memo):
        twin = type(self)(self.in_features, self.out_features)
        twin.load_state_dict(self.state_dict())
        return twin


@pytest.mark.parametrize("passed", [False, True])
@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (bpfree.DFA(), {"taps": CopiesItself}),
        (bpfree.DFA(), {"taps": CopiesItself, "window": 2}),
        (bpfree.DFA(), {"taps": CopiesItself, "alternate": 2, "within": bpfree.FA()}),
        (bpfree.DFA(), {"taps": ["0"], "error_at": "2"}),
        (bpfree.DRTP(), {"taps": CopiesItself, "streaming": True}),
        (bpfree.FDFA(), {"taps": CopiesItself}),
        (bpfree.FA(), {}),
        (bpfree.FA(), {"error_at": "2"}),
        (bpfree.KolenPollack(), {}),
        (bpfree.PEPITA(), {"taps": nn.Tanh}),
        (bpfree.ForwardGradient("activations"), {"taps": CopiesItself}),
    ],
    ids=str,
)
def test_a_copy_of_layers_that_copy_themselves_learns_as_the_original(rule, options, passed):
    x, y = batch()
    torch.manual_seed(0)
    model = nn.Sequential(CopiesItself(6, 8), nn.Tanh(), CopiesItself(8, 8), nn.Tanh(), CopiesItself(8, 4))
    attachment = bpfree.attach(model, rule, seed=1, **options)

    def learn(model, attachment):
        attachment.targets(y)
        F.cross_entropy(model(x), y).backward()
        return [parameter.grad for parameter in model.parameters()]

    if passed:
        learn(model, attachment)
        model.zero_grad()
    twin = copy.deepcopy(model)
    (of_twin,) = bpfree.attachments(twin)
    for found, expected in zip(learn(twin, of_twin), learn(model, attachment), strict=True):
        assert torch.equal(found, expected)
    of_twin.detach()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in twin.modules())


@pytest.mark.parametrize("options", [{}, {"window": 2}, {"streaming": True}, {"threads": 2}], ids=str)
def test_a_frozen_output_layer_passes_its_error(options):
    model, (x, y) = network().eval(), batch()
    model[6].requires_grad_(False)
    with bpfree.attach(model, bpfree.DFA(), seed=1, **options):
        F.cross_entropy(model(x), y).backward()
    frozen = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    model[6].requires_grad_()
    with bpfree.attach(model, bpfree.DFA(), seed=1, **options):
        F.cross_entropy(model(x), y).backward()
    assert frozen[-2:] == [None, None]
    for ours, expected in zip(frozen[:-2], list(model.parameters())[:-2], strict=True):
        torch.testing.assert_close(ours, expected.grad)


def test_what_is_frozen_below_excuses_no_tap_before_the_output():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh(), nn.Softmax(1))
    model[0].bias.requires_grad_(False)
    bpfree.attach(model, bpfree.DFA(), taps=nn.Tanh)
    with pytest.raises(errors.ErrorPlacementError, match="Leave that tap out"):
        model(batch()[0])


@pytest.mark.parametrize("end", [[], [Reshaped()], [Scale()]], ids=["alone", "reshaped", "scaled"])
def test_a_non_linearity_that_ends_the_model_is_no_tap(end):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh(), *end)
    attachment = bpfree.attach(model, bpfree.DFA())
    x = batch()[0]
    model(x).square().mean().backward()
    ours = model[2].weight.grad.clone()
    model.zero_grad()
    with attachment.paused():
        model(x).square().mean().backward()
    torch.testing.assert_close(ours, model[2].weight.grad)
    assert [site.name for site in attachment.mechanism.sites] == ["1"]


def test_a_model_that_takes_gradients_itself_is_estimated_without_a_warning():
    class Grad(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))

        def forward(self, x):
            with torch.enable_grad():
                return self.net(x)

    model, (x, y) = Grad(), batch()
    attachment = bpfree.attach(model, bpfree.FDFA())
    F.cross_entropy(model(x), y).backward()
    assert attachment.feedback["net.1:8"].norm() > 0


@pytest.mark.parametrize("options", [{}, {"window": 2}, {"streaming": True}, {"threads": 2}], ids=str)
def test_a_frozen_model_runs_as_it_is(options):
    model, (x, _) = network().eval(), batch()
    expected = model.requires_grad_(False)(x)
    bpfree.attach(model, bpfree.DFA(), **options)
    output = model(x)
    assert torch.equal(output, expected)
    assert not output.requires_grad


def test_a_part_of_the_model_that_is_called_alone_is_told_to_backpropagate():
    model, (x, y) = network(), batch()
    attachment = bpfree.attach(model, bpfree.DFA())
    with pytest.warns(bpfree.BpfreeWarning, match="tap '2' was reached without the model .* trains by plain"):
        model[:4](x)
    model[:4](x)  # once
    with torch.no_grad():
        model[:4](x)
    with attachment.paused():
        model[:4](x)
    F.cross_entropy(model(x), y).backward()


def test_the_table_is_that_of_the_last_pass():
    class Ways(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.t1, self.t2, self.t3 = nn.Tanh(), nn.Tanh(), nn.Tanh()

        def forward(self, x, short):
            h = self.t2(self.b(self.t1(self.a(x))))
            return self.head(h if short else self.t3(self.c(h)))

    model, x = Ways(), torch.randn(8, 4)
    attachment = bpfree.attach(model, bpfree.DFA())
    learners = {}
    for short in (False, True):
        model(x, short)
        rows = [line.split() for line in str(attachment).splitlines()]
        learners[short] = {row[0]: row[-1] for row in rows if row[0] in {"t1", "t2", "t3", "(output)"}}
    assert learners == {
        False: {"t1": "a", "t2": "b", "t3": "c", "(output)": "head"},
        True: {"t1": "a", "t2": "b", "(output)": "head"},
    }
    model.a.requires_grad_(False)
    model(x, short=True)
    assert ["t1", "Nx4", "3", "x", "4", "shared", "nothing"] in [line.split() for line in str(attachment).splitlines()]


def test_retained_graphs_may_be_used_twice():
    model = network().eval()
    attachment = bpfree.attach(model, bpfree.DFA())
    x, y = batch()
    loss = F.cross_entropy(model(x), y)
    loss.backward(retain_graph=True)
    once = model[0].weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(model[0].weight.grad, 2 * once)
    assert not attachment.mechanism._calls().calls


def test_activations_are_freed_with_the_graph():
    import gc
    import weakref

    model = network()
    attachment = bpfree.attach(model, bpfree.DFA())
    kept = []
    model[5].register_forward_hook(lambda m, a, out: kept.append(weakref.ref(out)), prepend=True)
    x, y = batch()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    del loss
    gc.collect()
    assert kept[0]() is None
    assert attachment.mechanism.sites


def test_the_table_says_what_lies_between_the_taps():
    model = network()
    attachment = bpfree.attach(model, bpfree.DFA())
    assert "2, 5" in str(attachment)
    step(model, attachment)
    lines = [line.split() for line in str(attachment).splitlines()]
    assert ["2", "Nx16", "4", "x", "16", "shared", "0,", "1"] in lines
    assert ["5", "Nx12", "4", "x", "12", "shared", "4"] in lines
    assert ["(output)", "exact", "gradient", "6"] in lines


def test_an_open_path_around_the_cut_is_told():
    class PreNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block, self.relu, self.head = (
                nn.Linear(4, 4),
                nn.Linear(4, 4),
                nn.ReLU(),
                nn.Linear(4, 2),
            )

        def forward(self, x):
            x = self.stem(x)
            return self.head(x + self.block(self.relu(x)))

    attachment = bpfree.attach(PreNorm(), bpfree.DFA(), example_inputs=torch.randn(2, 4))
    assert "stem: the signals of relu, (output) add up" in str(attachment)


def test_a_long_list_of_signals_is_folded():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.tap, self.head = nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)

        def forward(self, x):
            for _ in range(9):
                x = self.tap(self.cell(x))
            return self.head(x)

    attachment = bpfree.attach(Loop(), bpfree.DFA(), example_inputs=torch.randn(2, 4))
    assert "cell: the signals of tap, tap#2-9 add up" in str(attachment)


class Ensemble(nn.Module):
    """The mean of two heads, and a layer above it; one layer is not used."""

    def __init__(self):
        super().__init__()
        self.below, self.tap = nn.Linear(6, 8), bpfree.Tap()
        self.first, self.second, self.above, self.unused = (nn.Linear(n, 3) for n in (8, 8, 3, 3))

    def forward(self, x):
        h = self.tap(torch.tanh(self.below(x)))
        return self.above((self.first(h) + self.second(h)) / 2)


@pytest.mark.parametrize("options", [{}, {"verify": False}, {"threads": 2}], ids=str)
def test_the_table_names_the_layers_that_no_error_passes(options):
    """What is said to have an exact gradient has backpropagation's, and what no signal reaches has none."""
    torch.manual_seed(0)
    model, x = Ensemble(), torch.randn(5, 6)
    model(x).square().sum().backward()
    exact = {name: layer.weight.grad for name, layer in model.named_children() if name not in ("tap", "unused")}
    model.zero_grad()
    attachment = bpfree.attach(model, bpfree.DFA(), error_at="second", **options)
    model(x).square().sum().backward()
    text = str(attachment)
    assert "No error passes first, above: exact gradient" in text
    assert "No signal reaches unused: not used" in text
    for name in ("first", "above"):
        torch.testing.assert_close(getattr(model, name).weight.grad, exact[name])
    assert model.unused.weight.grad is None
    # With the first look the other head teaches the layer below the tap too, and the table says so.
    assert ("below: the signals of tap, (past the error) add up" in text) == (options in ({}, {"threads": 2}))


def test_the_table_of_a_stream_names_the_layers_of_which_it_stores_no_graph():
    model = Ensemble()
    attachment = bpfree.attach(model, bpfree.DFA(), error_at="second", streaming=True)
    model(torch.randn(5, 6))
    missed = (
        "No signal reaches first, unused: not used in this forward pass, or below a cut, or on a path beside the error"
    )
    assert missed in str(attachment)


def test_the_table_names_a_layer_of_a_loss_that_the_model_keeps():
    class Keeps(Ensemble):
        def forward(self, x):
            h = self.tap(torch.tanh(self.below(x)))
            self.balance = self.first(h).square().mean()
            return self.second(h)

    model = Keeps()
    attachment = bpfree.attach(model, bpfree.DFA())
    (model(torch.randn(5, 6)).sum() + model.balance).backward()
    assert "No error passes first: exact gradient" in str(attachment)
    assert "No signal reaches above, unused: not used" in str(attachment)
    assert model.first.weight.grad is not None


def test_taps_are_chosen_by_type_name_pattern_and_predicate():
    def chosen(taps):
        with bpfree.attach(network(), bpfree.DFA(), taps=taps) as attachment:
            return list(attachment.taps)

    assert chosen(None) == ["2", "5"]
    assert chosen(nn.Tanh) == ["5"]
    assert chosen([nn.Tanh, "1"]) == ["1", "5"]
    assert chosen("[12]") == ["1", "2"]
    assert chosen(lambda name, module: isinstance(module, nn.Linear) and name != "6") == ["0", "4"]


class ScaledDFA(bpfree.DirectRule):
    """A user's rule: the error, normalized row by row."""

    def vector(self, delivery):
        return F.normalize(delivery.error, dim=1)


def test_a_users_own_rule():
    model = network().eval()
    attachment = bpfree.attach(model, ScaledDFA())
    x, y = batch()
    with torch.no_grad():
        below = model[:4](x)
        h = model[4](below).tanh()
    error = (model[6](h).softmax(1) - F.one_hot(y, 4)) / 8
    F.cross_entropy(model(x), y).backward()
    d = error / error.norm(dim=1, keepdim=True) @ attachment.feedback.matrix(attachment.mechanism.sites[-1])
    expected = (d * (1 - h**2)).T @ below
    torch.testing.assert_close(model[4].weight.grad, expected)


@dataclass(frozen=True)
class Narrow(bpfree.DirectRule):
    def vector(self, delivery):
        return delivery.error[:, :2]


@dataclass(frozen=True)
class Crooked(bpfree.DirectRule):
    def signals(self, delivery):
        return [delivery.error for _ in delivery.sites]


@dataclass(frozen=True)
class Returning(bpfree.DirectRule):
    """A rule whose vector is what a function makes of the error."""

    made: Callable[[Any], Any]

    def vector(self, delivery):
        return self.made(delivery.error)


@dataclass(frozen=True)
class Sending(bpfree.DirectRule):
    """A rule whose signals are what a function makes of a delivery."""

    made: Callable[[Any], Any]

    def signals(self, delivery):
        return self.made(delivery)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (Narrow(), "the rule's vector has 2 numbers a row.*error's 4"),
        (Crooked(), r"has shape \(8, 4\)"),
        (Returning(lambda e: e.sum(dim=1)), r"vector is a tensor of shape \(8,\); .* shape \(8, c\)"),
        (Returning(lambda e: e[:4]), r"vector is a tensor of shape \(4, 4\); .* shape \(8, c\)"),
        (Returning(lambda e: None), "vector is of type NoneType; .* one row a sample"),
        (Returning(lambda e: e.numpy()), "vector is of type ndarray"),
        (Sending(lambda d: d.project(d.error.sum(dim=1), d.sites)), r"vector is a tensor of shape \(8,\)"),
        (Sending(lambda d: d.project(None, d.sites)), "vector is of type NoneType"),
        (Sending(lambda d: None), "signals .* are of type NoneType; a list with one per tap"),
        (Sending(lambda d: d.error), r"signals .* are a tensor of shape \(8, 4\); a list with one per tap"),
        (Sending(lambda d: [0.0 for _ in d.sites]), "the signal for tap .* is of type float"),
    ],
)
def test_a_users_own_rule_with_wrong_shapes_is_told(rule, says):
    model, (x, y) = network(), batch()
    bpfree.attach(model, rule)
    with pytest.raises(errors.TapShapeError, match=says):
        F.cross_entropy(model(x), y).backward()


@dataclass(frozen=True)
class Drawing(bpfree.LayerwiseRule):
    """A layerwise rule that draws, and uses, what two functions make of W."""

    drawn: Callable[[Any], Any]
    used: Callable[[Any], Any] = lambda kept: kept

    def draw(self, weight, generator):
        return self.drawn(weight)

    def backward_weight(self, weight, kept, generator):
        return self.used(kept)


@pytest.mark.parametrize(
    ("rule", "error", "says"),
    [
        (Drawing(lambda W: None), errors.OptionError, r"layer '4' is of type NoneType; draw\(\) must"),
        (Drawing(lambda W: 0.1), errors.OptionError, "is of type float"),
        (
            Drawing(lambda W: W[0]),
            errors.StateError,
            r"layer .* are a tensor of shape \(\d+,\), its weights have shape",
        ),
        (Drawing(torch.clone, lambda kept: None), errors.StateError, "layer .* are of type NoneType, its weights"),
    ],
)
def test_a_users_own_layerwise_rule_with_wrong_shapes_is_told(rule, error, says):
    model, (x, y) = network(), batch()
    bpfree.attach(model, rule, verify=False)
    with pytest.raises(error, match=says):
        F.cross_entropy(model(x), y).backward()


@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.FDFA(), bpfree.DRTP()], ids=str)
def test_a_model_that_returns_its_loss_is_told_to_name_its_output(rule):
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network()

        def forward(self, x, y):
            return F.cross_entropy(self.body(x), y)

    model, (x, y) = Loss(), batch()
    with bpfree.attach(model, rule), pytest.raises(errors.TapShapeError, match="returns its loss needs error_at=NAME"):
        model(x, y).backward()
    attachment = bpfree.attach(model, rule, error_at="body")
    if isinstance(rule, bpfree.DRTP):
        attachment.targets(y)
    model(x, y).backward()
    assert all(weight.grad is not None for weight in model.parameters())


@dataclass(frozen=True)
class Demanding(bpfree.DirectRule):
    """A rule with an option that has no default."""

    strength: float
    sign: bool = False


def test_a_rule_is_shown_with_the_options_that_are_not_its_defaults():
    assert str(Demanding(0.5)) == "Demanding(strength=0.5)"
    assert str(Demanding(0.5, sign=True)) == "Demanding(strength=0.5, sign=True)"
    assert str(bpfree.GrAPE()) == "GrAPE()"
    assert str(bpfree.GrAPE(step=0.2)) == "GrAPE(step=0.2)"
    assert "Demanding(strength=0.5) on Sequential" in str(bpfree.attach(network(), Demanding(0.5)))
