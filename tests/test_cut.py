"""A cut: direct rules end the gradient there and send no signal; everything else passes it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree

DIRECT = [bpfree.DFA(), bpfree.Shallow(), bpfree.DRTP(), bpfree.FDFA(), bpfree.GrAPE(), bpfree.LMS(), bpfree.DKP()]
OTHERS = [bpfree.BP(), bpfree.FA(), bpfree.SignSymmetry(), bpfree.KolenPollack()]


@pytest.fixture(autouse=True)
def _double(double):
    torch.manual_seed(0)


class TwoPaths(nn.Module):
    """Features that enter the output by their products, and through a network behind a cut."""

    def __init__(self, cut=True):
        super().__init__()
        self.features, self.cut = nn.Linear(4, 6), bpfree.Cut() if cut else nn.Identity()
        self.a, self.act, self.b, self.out = nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 3)
        self.tap, self.short = bpfree.Tap(), nn.Linear(6, 3)

    def forward(self, x):
        h = self.features(x)
        deep = self.tap(torch.tanh(self.b(self.act(self.a(self.cut(h))))))
        return self.out(deep) + self.short(h * h)


X, Y = torch.randn(7, 4, dtype=torch.float64), torch.randint(0, 3, (7,))


def learn(model, attachment=None):
    model.zero_grad()
    if attachment is not None:
        attachment.targets(Y)
    F.cross_entropy(model(X), Y).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def by_the_short_path(model):
    """Gradients of the features by hand: of W (h * h) + ..., the rest of the output being a constant."""
    with torch.no_grad():
        h = X @ model.features.weight.T + model.features.bias
        error = (model(X).softmax(1) - F.one_hot(Y, 3)) / len(Y)
        at_h = (error @ model.short.weight) * 2 * h
        return {"features.weight": at_h.T @ X, "features.bias": at_h.sum(0)}


@pytest.mark.parametrize("rule", DIRECT, ids=str)
@pytest.mark.parametrize("options", [{}, {"window": 2}, {"threads": 2}, {"verify": False}], ids=str)
def test_below_a_cut_only_other_paths_teach(rule, options):
    model = TwoPaths()
    with bpfree.attach(model, rule, **options) as attachment:
        for _ in range(2):
            found = learn(model, attachment)
    for name, gradient in by_the_short_path(model).items():
        torch.testing.assert_close(found[name], gradient, atol=1e-14, rtol=1e-10)


@pytest.mark.parametrize("rule", OTHERS, ids=str)
def test_other_rules_pass_a_cut(rule):
    model, without = TwoPaths(), TwoPaths(cut=False)
    without.load_state_dict(model.state_dict())
    with bpfree.attach(model, rule, seed=3) as a, bpfree.attach(without, rule, seed=3) as b:
        found, expected = learn(model, a), learn(without, b)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=0, rtol=0)


def test_a_paused_or_detached_rule_cuts_nothing():
    model = TwoPaths()
    exact = learn(model)
    attachment = bpfree.attach(model, bpfree.DFA())
    assert not torch.allclose(learn(model)["features.weight"], exact["features.weight"])
    with attachment.paused():
        assert torch.equal(learn(model)["features.weight"], exact["features.weight"])
    attachment.detach()
    assert torch.equal(learn(model)["features.weight"], exact["features.weight"])


def test_forward_gradients_of_weights_do_not_pass_a_cut():
    """Their mean is the gradient of what the cut leaves: by the short path alone."""
    model = TwoPaths()
    mean = torch.zeros(6, 4)
    with bpfree.attach(model, bpfree.ForwardGradient()):
        for _ in range(600):
            mean += learn(model)["features.weight"] / 600
    assert F.cosine_similarity(mean.flatten(), by_the_short_path(model)["features.weight"].flatten(), dim=0) > 0.9


def test_the_table_names_the_cut_and_what_nothing_teaches():
    model = nn.Sequential(nn.Linear(4, 6), bpfree.Cut(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    with bpfree.attach(model, bpfree.DFA(), example_inputs=X) as attachment:
        found = learn(model)
        assert found["0.weight"] is None
        text = str(attachment)
        assert not bpfree.verify(attachment, X).findings
    assert "No signal passes 1: cut there." in text
    assert "No signal reaches 0: not used in this forward pass, or below a cut." in text


def test_a_tap_that_nothing_leads_up_from_but_a_cut_is_refused():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), bpfree.Cut(), nn.Linear(5, 3))
    with bpfree.attach(model, bpfree.DFA()) as attachment:
        assert list(attachment.taps) == ["1"]
        with pytest.raises(bpfree.errors.ErrorPlacementError, match="takes it out of the graph"):
            model(X)


def test_alignment_is_measured_above_a_cut():
    model = TwoPaths()
    with bpfree.attach(model, bpfree.DFA()) as attachment:
        report = bpfree.alignment(attachment, lambda: F.cross_entropy(model(X), Y))
    assert [tap.name for tap in report.taps] == ["act", "tap"]
    exact = learn(model)
    assert exact["features.weight"].norm() > 0


def test_copies_and_compiled_models_cut_too():
    model = TwoPaths()
    with bpfree.attach(model, bpfree.DFA(), example_inputs=X):
        expected = learn(model)["features.weight"].clone()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(learn(compiled)["_orig_mod.features.weight"], expected, atol=1e-14, rtol=1e-10)
        twin = copy.deepcopy(model)
    torch.testing.assert_close(learn(twin)["features.weight"], expected, atol=0, rtol=0)
    bpfree.detach_all(twin)
    assert not torch.allclose(learn(twin)["features.weight"], expected)


def test_a_stream_may_have_a_cut():
    """Where nothing but the cut leads down: a path around a tap is refused in any case."""
    model = nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), bpfree.Cut(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)
    )
    with bpfree.attach(model, bpfree.DFA()):
        expected = learn(model)
    with bpfree.attach(model, bpfree.DFA(), streaming=True):
        found = learn(model)
    assert expected["2.weight"] is None
    for name, gradient in expected.items():
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, atol=1e-14, rtol=1e-10)
