"""Windows: signals carried down through several segments."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from support.by_hand import assert_same
from support.cut_models import DEPTH, C, Residual, convnet, mlp
from support.rule_contract import Subject, assert_rule_serves

MODELS = {"mlp": (mlp, (8, 6)), "convolution": (convnet, (8, 1, 8, 8)), "residual": (Residual, (8, 6))}


def batch(name):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(MODELS[name][1], generator=generator), torch.randint(0, C, (8,), generator=generator)


def gradients(name, rule, **options):
    model, (x, y) = MODELS[name][0](), batch(name)
    with bpfree.attach(model, rule, seed=3, **options):
        F.cross_entropy(model(x), y).backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.GrAPE(), bpfree.DKP()], ids=str)
def test_a_window_of_one_is_the_plain_rule_and_a_deep_one_is_backpropagation(double, name, rule):
    assert_same(gradients(name, rule, window=1), gradients(name, rule))
    assert_same(gradients(name, rule, window=DEPTH + 1), gradients(name, bpfree.BP()))


@pytest.mark.parametrize("name", MODELS)
def test_a_window_deeper_than_the_model_runs_nothing_more(double, name, monkeypatch):
    runs, plain = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *given, **options: runs.append(1) or plain(*given, **options))
    found = gradients(name, bpfree.DFA(), window=DEPTH + 1)
    enough = len(runs)
    assert_same(gradients(name, bpfree.DFA(), window=50 * DEPTH), found)
    assert len(runs) == 2 * enough


@pytest.mark.parametrize("within", [None, bpfree.KolenPollack()], ids=str)
@pytest.mark.parametrize(
    ("name", "frozen"),
    [("mlp", ["0"]), ("mlp", ["2.weight"]), ("mlp", ["0", "2"]), ("mlp", ["0", "2", "4", "6"]),
     # Paths lead around its cuts: its segments run together.
     ("residual", ["first"]), ("residual", ["blocks.1.0.weight"]), ("residual", ["first", "blocks", "head"])],
)  # fmt: skip
def test_what_is_frozen_behind_the_forward_pass_gets_no_gradient(double, name, frozen, within):
    """As in torch: the other gradients are what they were."""

    def found(frozen):
        model, (x, y) = MODELS[name][0](), batch(name)
        with bpfree.attach(model, bpfree.DFA(), window=2, within=within, seed=3):
            loss = F.cross_entropy(model(x), y)
            named = [(name, p) for name, p in model.named_parameters() if name.startswith(tuple(frozen))]
            for _, parameter in named:
                parameter.requires_grad_(False)
            loss.backward()
        return {name: p.grad for name, p in model.named_parameters()}, [name for name, _ in named]

    (every, _), (rest, off) = found([]), found(frozen)
    assert [name for name, gradient in rest.items() if gradient is None] == off
    assert_same([rest[name] for name in rest if name not in off], [every[name] for name in rest if name not in off])


@pytest.mark.parametrize("window", [2, 3])
def test_a_window_is_the_form_written_out(double, window):
    """The signal of tap l + w - 1 goes down w - 1 segments; near the top the error does."""
    x, y = batch("mlp")
    model = mlp()
    attachment = bpfree.attach(model, bpfree.DFA(feedback=bpfree.Feedback(shared=False)), window=window, seed=3)
    F.cross_entropy(model(x), y).backward()
    B = [attachment.feedback.matrix(site) for site in attachment.mechanism.sites]
    W = [model[2 * i].weight.detach() for i in range(DEPTH + 1)]
    h = [x]
    for i in range(DEPTH):
        h.append(torch.tanh(h[-1] @ W[i].T + model[2 * i].bias.detach()))
    e = ((h[-1] @ W[DEPTH].T + model[2 * DEPTH].bias.detach()).softmax(1) - F.one_hot(y, C)) / len(x)
    for i in range(DEPTH):
        top = i + window - 1
        if top >= DEPTH:
            signal = e @ W[DEPTH]
            carriers = range(DEPTH - 1, i, -1)
        else:
            signal = e @ B[top]
            carriers = range(top, i, -1)
        for j in carriers:
            signal = (signal * (1 - h[j + 1] ** 2)) @ W[j]
        expected = (signal * (1 - h[i + 1] ** 2)).T @ h[i]
        torch.testing.assert_close(model[2 * i].weight.grad, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(model[2 * DEPTH].weight.grad, e.T @ h[-1], rtol=1e-12, atol=1e-14)


def test_the_top_segments_learn_exactly(double):
    exact = gradients("mlp", bpfree.BP())
    for window in (2, 3):
        found = gradients("mlp", bpfree.DFA(), window=window)
        assert_same(found[-2 * window :], exact[-2 * window :])
        assert not torch.allclose(found[-2 * window - 2], exact[-2 * window - 2])


def test_micro_batches_are_the_full_batch(double):
    x, y = batch("mlp")
    whole = gradients("mlp", bpfree.DFA(), window=2)
    model = mlp()
    bpfree.attach(model, bpfree.DFA(), window=2, seed=3)
    for part in (slice(0, 4), slice(4, 8)):
        (F.cross_entropy(model(x[part]), y[part]) / 2).backward()
    assert_same([parameter.grad for parameter in model.parameters()], whole)


def test_windows_serve_a_model_with_an_in_place_operation_behind_the_tap():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.tap, self.head = nn.Linear(6, 6), bpfree.Tap(), nn.Linear(6, C)

        def forward(self, x):
            return self.head(self.tap(self.first(x)).mul_(2.0))

    x, y = batch("mlp")
    subject = Subject(InPlace, lambda model: model(x), lambda model: F.cross_entropy(model(x), y), y, {"window": 2})
    assert_rule_serves(subject, bpfree.DFA())


@pytest.mark.parametrize("name", MODELS)
def test_windows_serve(name):
    build, (x, y) = MODELS[name][0], batch(name)
    subject = Subject(build, lambda model: model(x), lambda model: F.cross_entropy(model(x), y), y, {"window": 2})
    assert_rule_serves(subject, bpfree.GrAPE())


def test_autograd_forms_no_input_gradient_in_the_last_pass(double):
    """Products of one step in units of one layer's: forward 1, weights 1, and w - 1 of the input gradients.

    The error passes the output layer once, however often it is carried further.
    """
    from torch.utils.flop_counter import FlopCounterMode

    x, y = torch.randn(64, 6), torch.randint(0, C, (64,))
    model = nn.Sequential(*[part for _ in range(6) for part in (nn.Linear(6, 6), nn.Tanh())], nn.Linear(6, 6))
    layer = 2 * 64 * 6 * 6
    for window, carried in ((1, 0), (2, 6), (3, 6 + 5)):
        attachment = bpfree.attach(model, bpfree.DFA(), window=window, example_inputs=x)
        with attachment, FlopCounterMode(display=False) as counter:
            F.cross_entropy(model(x), y).backward()
        projections = 1  # the taps share one signal, e B, with 6 numbers of error
        assert counter.get_total_flops() == layer * (7 + 7 + carried + projections)


@pytest.mark.parametrize("name", ["mlp", "convolution"])
@pytest.mark.parametrize("within", [bpfree.FA(), bpfree.SignSymmetry(), bpfree.KolenPollack()], ids=str)
def test_other_backward_weights_inside_a_deep_window_are_their_own_rule(double, name, within):
    """Nothing of the direct rule is left in a window as deep as the network."""
    model, twin = MODELS[name][0](), MODELS[name][0]()
    x, y = batch(name)
    inside = bpfree.attach(model, bpfree.DFA(), window=DEPTH + 1, within=within, seed=3)
    alone = bpfree.attach(twin, within, seed=3)
    for one in (model, twin):
        F.cross_entropy(one(x), y).backward()
    assert_same([p.grad for p in model.parameters()], [p.grad for p in twin.parameters()])
    # What learns (Kolen-Pollack's backward weights) learns the same, once.
    learned = [[p.grad for p in attachment.parameters() if p.grad is not None] for attachment in (inside, alone)]
    assert_same(*learned)
    assert bool(learned[0]) == isinstance(within, bpfree.KolenPollack)


def test_an_attachment_with_backward_weights_inside_saves_and_shows_both():
    x, y = batch("mlp")
    model = mlp()
    attachment = bpfree.attach(model, bpfree.GrAPE(), window=2, within=bpfree.FA(), seed=3)
    F.cross_entropy(model(x), y).backward()
    shown = str(attachment)
    assert "window 2" in shown
    assert "the signal one tap further up" in shown
    assert "within: FA()" in shown
    again = bpfree.attach(mlp(), bpfree.GrAPE(), window=2, within=bpfree.FA(), seed=8)
    again.load_state_dict(copy.deepcopy(attachment.state_dict()))
    other = bpfree.attach(mlp(), bpfree.GrAPE(), window=2, seed=3)
    with pytest.raises(bpfree.errors.StateError, match="within"):
        other.load_state_dict(copy.deepcopy(attachment.state_dict()))


def test_a_second_backward_pass_is_refused():
    x, y = batch("mlp")
    model = mlp()
    bpfree.attach(model, bpfree.DFA(), window=2)
    loss = F.cross_entropy(model(x), y)
    loss.backward(retain_graph=True)
    with pytest.raises(bpfree.errors.UsedRecordError, match="cannot keep the pass for a second one"):
        loss.backward()


@pytest.mark.parametrize(
    ("rule", "options", "said"),
    [
        (bpfree.DFA(), {"window": 0}, "window=0"),
        (bpfree.DFA(), {"window": 1.5}, "window=1.5: a whole number"),
        (bpfree.BP(), {"window": 2}, "direct rules only"),
        (bpfree.FA(), {"within": bpfree.FA()}, "inside the segments of a direct"),
        (bpfree.DFA(), {"within": bpfree.DFA()}, "a layerwise rule"),
    ],
)
def test_windows_that_mean_nothing_are_refused(rule, options, said):
    with pytest.raises(bpfree.errors.OptionError, match=said):
        bpfree.attach(mlp(), rule, **options)


def test_alignment_of_a_window_is_that_of_what_its_segments_learn_from(double):
    x, y = batch("mlp")
    model = mlp()
    attachment = bpfree.attach(model, bpfree.DFA(), window=2, seed=3)

    def loss():
        return F.cross_entropy(model(x), y)

    report = bpfree.alignment(attachment, loss)
    assert report.taps[-1].cosine_mean == pytest.approx(1.0, abs=1e-12)  # the top two segments are exact
    assert abs(report.taps[0].cosine_mean) < 0.99


@pytest.mark.parametrize("calls", [1, 2])
def test_what_the_arguments_come_from_is_left_to_autograd(double, calls):
    torch.manual_seed(1)
    stem, model = nn.Sequential(nn.Linear(6, 6), nn.Tanh()), mlp()
    x, y = batch("mlp")

    def found():
        for part in (stem, model):
            part.zero_grad()
        z = stem(x)
        # The stem learns through the model, by a way around it, and as often as the model is called.
        (sum(F.cross_entropy(model(z), y) for _ in range(calls)) + z.square().sum()).backward()
        return [parameter.grad.clone() for part in (stem, model) for parameter in part.parameters()]

    exact = found()
    with bpfree.attach(model, bpfree.DFA(), window=DEPTH + 1):
        assert_same(found(), exact)


class Two(nn.Module):
    """A model of two arguments."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x, y):
        return self.net(x * y)


def test_arguments_that_come_from_each_other(double):
    torch.manual_seed(1)
    stem, model = nn.Linear(6, 6), Two()
    x, y = batch("mlp")

    def found():
        for part in (stem, model):
            part.zero_grad()
        z = stem(x)
        F.cross_entropy(model(z, y=z.tanh()), y).backward()
        return [parameter.grad.clone() for part in (stem, model) for parameter in part.parameters()]

    exact = found()
    with bpfree.attach(model, bpfree.DFA(), window=DEPTH + 1):
        assert_same(found(), exact)


def test_a_frozen_trunk_leaves_the_output_layer():
    model, (x, y) = mlp(), batch("mlp")
    model[:-1].requires_grad_(False)
    F.cross_entropy(model(x), y).backward()
    exact = [parameter.grad.clone() for parameter in model[-1].parameters()]
    model.zero_grad()
    bpfree.attach(model, bpfree.DFA(), window=2)
    F.cross_entropy(model(x), y).backward()
    assert_same([parameter.grad for parameter in model[-1].parameters()], exact)


@pytest.mark.parametrize("window", [2, 3])
def test_signals_exist_when_their_segments_run(window):
    """Of a deep net's signals and activations only those of the present segments are in memory."""
    from bpfree.lab.time_and_memory import peak_bytes

    depth, width, rows = 16, 8, 4096  # activations outweigh gradients by far
    peaks = []
    for rule, options in ((bpfree.BP(), {}), (bpfree.DFA(feedback=bpfree.Feedback(shared=False)), {"window": window})):
        layers = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.Tanh())]
        model, x, y = nn.Sequential(*layers, nn.Linear(width, C)), torch.randn(rows, width), torch.zeros(rows).long()
        bpfree.attach(model, rule, example_inputs=x, **options)

        def step(model=model, x=x, y=y):
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()

        step()
        peaks.append(peak_bytes(step))
    one = 4 * rows * width
    assert peaks[1] - peaks[0] <= (window + 1) * one
