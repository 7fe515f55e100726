"""The measure of alignment, against cosines computed by hand and from two separate nets."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree.errors import OptionError, TapSelectionError


def network(dropout=0.0):
    return nn.Sequential(
        nn.Linear(6, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(16, 12),
        nn.Tanh(),
        nn.Linear(12, 4),
    ).double()


def data(n=9):
    return torch.randn(n, 6, dtype=torch.float64), torch.randint(0, 4, (n,))


def closure_for(model, x, y, attachment=None):
    def closure():
        if attachment is not None:
            attachment.targets(y)
        return F.cross_entropy(model(x), y)

    return closure


def test_between_taps_the_signal_of_the_tap_above_is_compared():
    model, (x, y) = network(), data()
    attachment = bpfree.attach(model, bpfree.DFA(), taps=["5"], example_inputs=x)
    report = bpfree.alignment(attachment, closure_for(model.eval(), x, y), layers=["2", "6"])

    with attachment.paused():
        h1 = model[:3](x)
        h2 = model[3:6](h1)
        output = model[6](h2)
        (exact,) = torch.autograd.grad(F.cross_entropy(output, y), h1, retain_graph=True)
        error = (output.softmax(1) - F.one_hot(y, 4)) / len(y)
        (signal,) = torch.autograd.grad(h2, h1, error @ attachment.feedback.matrix(attachment.mechanism.sites[0]))
    assert [place.name for place in report.taps] == ["2", "5", "6"]
    below, _, output = report.taps
    assert below.cosine_mean == pytest.approx(float(F.cosine_similarity(signal, exact, dim=1).mean()), abs=1e-12)
    assert below.cosine_mean < 0.99
    assert output.cosine_mean == pytest.approx(1, abs=1e-12)  # the error itself is the same


class Tokens(nn.Module):
    """Its first layer has tokens in rows, and samples and tokens behind."""

    def __init__(self):
        super().__init__()
        self.below, self.between = nn.Linear(6, 7), nn.Linear(7, 8)
        self.tap, self.head, self.unused = nn.Tanh(), nn.Linear(8, 3), nn.Linear(1, 1)
        self.turned = nn.Identity()

    def forward(self, x):
        h = self.below(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.head(self.tap(self.between(self.turned(h.transpose(1, 2)).transpose(1, 2))))


def test_a_layer_with_rows_of_its_own_layout_leaves_the_taps_as_they_are():
    model = Tokens().double()
    attachment = bpfree.attach(model, bpfree.DFA(), taps=["tap"], seed=0)

    def closure():
        return model(torch.linspace(-1, 1, 4 * 5 * 6, dtype=torch.float64).view(4, 5, 6)).square().sum()

    alone = bpfree.alignment(attachment, closure)
    below, tap = bpfree.alignment(attachment, closure, layers=["below"]).taps
    assert alone.taps == (tap,)
    assert below.n_valid == tap.n_valid == 20
    with pytest.raises(TapSelectionError, match="unused, which the forward pass does not reach"):
        bpfree.alignment(attachment, closure, layers=["unused"])
    with pytest.raises(TapSelectionError, match=r"turned, whose output of shape \(4, 7, 5\) .* 20 rows"):
        bpfree.alignment(attachment, closure, layers=["turned"])


@pytest.mark.parametrize(
    ("window", "layers", "message"), [(1, ["7"], "7, but the model has no such module"), (2, ["0"], "several windows")]
)
def test_layers_that_cannot_be_compared_are_refused(window, layers, message):
    model, (x, y) = network(), data()
    attachment = bpfree.attach(model, bpfree.DFA(), window=window, example_inputs=x)
    with pytest.raises(TapSelectionError, match=message):
        bpfree.alignment(attachment, closure_for(model, x, y), layers=layers)


def test_against_a_second_copy_of_the_model():
    # The reference is what the library promises to do without: a copy, run by plain autograd under the same mask.
    model = network(dropout=0.4)
    x, y = data()
    attachment = bpfree.attach(model, bpfree.DFA(), example_inputs=x)
    torch.manual_seed(7)
    report = bpfree.alignment(attachment, closure_for(model, x, y))

    with attachment.paused():
        twin = network(dropout=0.4)
        twin.load_state_dict(model.state_dict())
    torch.manual_seed(7)
    h1 = twin[:3](x)
    h2 = twin[4:6](twin[3](h1))
    loss = F.cross_entropy(twin[6](h2), y)
    g1, g2 = torch.autograd.grad(loss, [h1, h2])
    error = (twin[6](h2).softmax(1) - F.one_hot(y, 4)) / len(y)
    for tap, h, g, site in zip(report.taps, (h1, h2), (g1, g2), attachment.mechanism.sites, strict=True):
        d = error @ attachment.feedback.matrix(site)
        cosines = F.cosine_similarity(d, g, dim=1)
        assert tap.name == site.name
        assert tap.cosine_mean == pytest.approx(float(cosines.detach().mean()), abs=1e-12)
        assert tap.cosine_std == pytest.approx(float(cosines.detach().std(correction=0)), abs=1e-12)
        assert tap.norm_activation == pytest.approx(float(h.detach().norm(dim=1).mean()))
        assert tap.norm_signal == pytest.approx(float(d.detach().norm(dim=1).mean()))
        assert tap.norm_bp == pytest.approx(float(g.norm(dim=1).mean()))
        assert (tap.n_valid, tap.both_zero) == (9, 0.0)


RULES = [
    bpfree.BP(),
    bpfree.Shallow(),
    bpfree.DFA(),
    bpfree.DRTP(),
    bpfree.FA(),
    bpfree.SignSymmetry("batch"),
    bpfree.GrAPE(),
    bpfree.LMS(),
    bpfree.DKP(),
    bpfree.KolenPollack(),
    bpfree.WeightMirror(),
    bpfree.ForwardGradient(),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("known", [True, False])
def test_measuring_leaves_no_trace(rule, known):
    def run(measure):
        torch.manual_seed(3)
        model = network(dropout=0.4)
        x, y = data()
        attachment = bpfree.attach(model, rule, example_inputs=x if known else None)
        optimizer = torch.optim.Adam([*model.parameters(), *attachment.parameters()], lr=0.01)
        for _ in range(3):
            F.cross_entropy(model(x), y, reduction="sum")  # a graph that is alive while measuring
            attachment.targets(y)
            if measure:  # with the targets of this step, and the gradients of the one before
                bpfree.alignment(attachment, closure_for(model, x, y, attachment))
            F.cross_entropy(model(x), y).backward()  # adds to what is there
            optimizer.step()
        return list(model.state_dict().values()) + list(attachment.state_dict().values()) + [torch.get_rng_state()]

    for with_measure, without in zip(run(True), run(False), strict=True):
        assert torch.equal(with_measure, without)


def test_backpropagation_agrees_with_itself_and_shallow_with_nothing():
    x, y = data()
    model = network(dropout=0.4)
    with bpfree.attach(model, bpfree.BP()) as attachment:
        for tap in bpfree.alignment(attachment, closure_for(model, x, y)).taps:
            assert tap.cosine_mean == pytest.approx(1, abs=1e-12)
    with bpfree.attach(model, bpfree.Shallow()) as attachment:
        report = bpfree.alignment(attachment, closure_for(model, x, y))
        assert [tap.name for tap in report.taps] == ["2", "5"]
        for tap in report.taps:
            assert math.isnan(tap.cosine_mean)
            assert (tap.n_valid, tap.norm_signal) == (0, 0.0)


def test_rows_where_both_are_zero_are_counted_apart():
    # A sample of weight zero has no error at all: its cosine is not 1, it is not there.
    model, (x, y) = network().eval(), data()
    attachment = bpfree.attach(model, bpfree.DFA())
    weight = torch.tensor([0.0, 0.0, 0.0, *[1.0] * 6], dtype=torch.float64)
    report = bpfree.alignment(attachment, lambda: (F.cross_entropy(model(x), y, reduction="none") * weight).sum())
    assert [tap.n_valid for tap in report.taps] == [6, 6]
    assert [tap.both_zero for tap in report.taps] == [pytest.approx(1 / 3)] * 2


def test_tiny_signals_have_a_direction_too():
    model, (x, y) = network().eval(), data()
    attachment = bpfree.attach(model, bpfree.DFA(), example_inputs=x)
    plain = bpfree.alignment(attachment, closure_for(model, x, y))
    tiny = bpfree.alignment(attachment, lambda: F.cross_entropy(model(x), y) * 1e-100)
    assert tiny.taps[0].norm_bp < 1e-100
    for ours, theirs in zip(tiny.taps, plain.taps, strict=True):
        assert ours.cosine_mean == pytest.approx(theirs.cosine_mean, abs=1e-9)


def test_layerwise_rules_and_taps_in_place_are_measured():
    # FA with B := W is backpropagation: cosine 1, also where an in-place operation follows a tap.
    model = nn.Sequential(
        nn.Linear(6, 8), bpfree.Tap(), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)
    ).double()
    x, y = data()
    attachment = bpfree.attach(model, bpfree.FA(), example_inputs=x)
    assert bpfree.alignment(attachment, closure_for(model, x, y)).taps[0].cosine_mean < 0.9
    for name in attachment.feedback:
        attachment.feedback[name].copy_(model.get_submodule(name).weight)
    report = bpfree.alignment(attachment, closure_for(model, x, y))
    assert [tap.name for tap in report.taps] == ["1", "2", "4"]
    for tap in report.taps:
        assert tap.cosine_mean == pytest.approx(1, abs=1e-12)


def test_the_report_prints_as_a_table():
    model, (x, y) = network(), data()
    report = bpfree.alignment(bpfree.attach(model, bpfree.DFA()), closure_for(model, x, y))
    lines = str(report).splitlines()
    assert lines[0].split()[:2] == ["tap", "cosine"]
    assert [line.split()[0] for line in lines[2:]] == ["2", "5"]


def test_no_tap_is_an_error():
    model = nn.Sequential(nn.Linear(6, 4)).double()
    x, y = data()
    attachment = bpfree.attach(model, bpfree.FA())
    with pytest.raises(bpfree.errors.TapSelectionError, match="name taps"):
        bpfree.alignment(attachment, closure_for(model, x, y))


@pytest.mark.parametrize(
    ("loss_of", "says"),
    [
        (lambda output: output, r"a tensor of shape \(4, 3\)"),
        (lambda output: output.detach().sum(), "without a graph"),
        (lambda output: None, "of type NoneType"),
    ],
)
def test_a_closure_that_returns_no_loss_is_told(loss_of, says):
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    attachment = bpfree.attach(model, bpfree.DFA())
    with pytest.raises(OptionError, match=f"the closure returned .*{says}"):
        bpfree.alignment(attachment, lambda: loss_of(model(torch.randn(4, 5))))


def test_a_copy_is_not_needed(monkeypatch):
    monkeypatch.setattr(copy, "deepcopy", lambda *_: pytest.fail("the model was copied"))
    model, (x, y) = network(), data()
    bpfree.alignment(bpfree.attach(model, bpfree.DFA()), closure_for(model, x, y))


@pytest.mark.parametrize("dims", [1, 2])
def test_feedback_is_compared_with_the_mean_jacobian(dims):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    shape = (5,) if dims == 1 else (5, 3)
    x = torch.randn(*shape, 6, dtype=torch.float64)
    attachment = bpfree.attach(model, bpfree.DFA(), example_inputs=x)
    report = bpfree.alignment(attachment, lambda: model(x).square().mean())
    with attachment.paused():
        jacobian = torch.func.vmap(torch.func.jacrev(model[2:]))(model[:2](x).detach().flatten(0, -2)).mean(0)
    B = attachment.feedback.matrix(attachment.mechanism.sites[0])
    expected = float(F.cosine_similarity(B.flatten(), jacobian.detach().flatten(), 0))
    assert report.taps[0].cosine_feedback == pytest.approx(expected, abs=1e-12)
    assert f"{expected:.3f}" in str(report)
    assert math.isnan(bpfree.alignment(attachment, lambda: model(x).sum(), jacobian=False).taps[0].cosine_feedback)


def test_a_rule_without_matrices_has_no_feedback_to_compare():
    model, (x, y) = network(), data()
    attachment = bpfree.attach(model, bpfree.FA())
    assert math.isnan(bpfree.alignment(attachment, closure_for(model, x, y)).taps[0].cosine_feedback)


def test_learned_feedback_arrives_at_the_mean_jacobian():
    model, (x, y) = network(), data(64)
    model.eval()
    attachment = bpfree.attach(model, bpfree.GrAPE(step=0.5))
    for _ in range(300):
        F.cross_entropy(model(x), y).backward()
    report = bpfree.alignment(attachment, closure_for(model, x, y))
    assert min(tap.cosine_feedback for tap in report.taps) > 0.9


def test_forward_gradients_are_measured_too():
    model, (x, y) = network(), data()
    attachment = bpfree.attach(model, bpfree.ForwardGradient())
    report = bpfree.alignment(attachment, closure_for(model, x, y))
    assert all(0 < abs(tap.cosine_mean) < 1 for tap in report.taps)


@pytest.mark.parametrize("rule", [bpfree.ForwardGradient("weights"), bpfree.PEPITA()], ids=str)
def test_a_rule_without_signals_is_told_so(rule):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    attachment = bpfree.attach(model, rule)
    x, y = torch.randn(5, 6), torch.randint(0, 4, (5,))
    with pytest.raises(bpfree.errors.TapSelectionError, match="no tap got a signal"):
        bpfree.alignment(attachment, closure_for(model, x, y, attachment))


class Pooled(nn.Module):
    """Tokens up to where the error is taken, one row a sequence above, with a tap of its own there."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 7), nn.ReLU())
        self.norm, self.head = nn.LayerNorm(7), nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 4))

    def forward(self, x):
        return self.head(self.norm(self.body(x)).mean(1))


@pytest.mark.parametrize("rule", [bpfree.BP(), bpfree.DFA(), bpfree.FA()], ids=str)
def test_taps_above_the_error_are_left_out(rule):
    torch.manual_seed(0)
    model, x, y = Pooled(), torch.randn(8, 3, 6), torch.randint(0, 4, (8,))
    attachment = bpfree.attach(model, rule, error_at="norm")
    report = bpfree.alignment(attachment, closure_for(model, x, y))
    assert [tap.name for tap in report.taps] == ["body.1", "body.3"]
    assert report.taps[0].n_valid == 24


def test_every_pass_of_a_closure_is_measured():
    model, (x, y) = network(), data()
    attachment = bpfree.attach(model.eval(), bpfree.DFA())
    once = bpfree.alignment(attachment, lambda: F.cross_entropy(model(x), y))
    twice = bpfree.alignment(attachment, lambda: F.cross_entropy(model(x), y) + F.cross_entropy(model(x + 1), y))
    names = [tap.name for tap in once.taps]
    assert [tap.name for tap in twice.taps] == [*names, *(f"{name}#2" for name in names)]
    assert twice.taps[0].cosine_mean == pytest.approx(once.taps[0].cosine_mean)


class Exits(nn.Module):
    """Two exits: the tap between them lies above the first error and below the second."""

    def __init__(self):
        super().__init__()
        self.a, self.s, self.b, self.t = nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh()
        self.early, self.late = nn.Linear(8, 3), nn.Linear(7, 2)

    def forward(self, x):
        h = self.s(self.a(x))
        return self.early(h), self.late(self.t(self.b(h)))


class Apart(nn.Module):
    """Two nets side by side, the second one reached behind the first one's error."""

    def __init__(self):
        super().__init__()
        self.one, self.other = (nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)) for _ in range(2))

    def forward(self, x):
        return self.one(x), self.other(x)


def signals_by_hand(attachment, errors, name):
    """The sum of e B over the errors above a tap, and each B by its error's name."""
    mechanism = attachment.mechanism
    known = dict(zip(errors, (mechanism, *mechanism.further.values()), strict=True))
    found = {}
    for error, sender in known.items():
        site = next((site for site in sender.sites if site.name == name), None)
        if site is not None:
            found[error] = sender.feedback.matrix(site).clone()
    return sum(errors[error] @ B for error, B in found.items()), found


@pytest.mark.parametrize(
    ("build", "names", "taps"),
    [(Exits, ("early", "late"), ["s", "t"]), (Exits, ("late", "early"), ["s", "t"]),
     (Apart, ("one", "other"), ["one.1", "other.1"])],
)  # fmt: skip
def test_taps_below_any_of_several_errors_are_compared(build, names, taps):
    torch.manual_seed(0)
    model, x = build().double(), torch.randn(9, 6, dtype=torch.float64)
    attachment = bpfree.attach(model, bpfree.DFA(), error_at=names)

    def closure():
        return sum((k + 1) * output.square().sum() for k, output in enumerate(model(x)))

    report = bpfree.alignment(attachment, closure, jacobian=True)
    assert [tap.name for tap in report.taps] == taps
    with attachment.paused():
        kept = {}
        hooks = [
            model.get_submodule(name).register_forward_hook(lambda m, a, output, name=name: kept.update({name: output}))
            for name in (*taps, *names)
        ]
        loss = closure()
        for hook in hooks:
            hook.remove()
        exact = torch.autograd.grad(loss, [kept[tap] for tap in taps], retain_graph=True)
        errors = dict(
            zip(names, torch.autograd.grad(loss, [kept[name] for name in names], retain_graph=True), strict=True)
        )
        for tap, gradient, found in zip(taps, exact, report.taps, strict=True):
            signal, B = signals_by_hand(attachment, errors, tap)
            expected = F.cosine_similarity(signal, gradient, dim=1).mean()
            assert found.cosine_mean == pytest.approx(float(expected), abs=1e-12)
            J = {}
            for error in B:
                rows = [torch.autograd.grad(part.sum(), kept[tap], retain_graph=True)[0] for part in kept[error].T]
                J[error] = torch.stack(rows).mean(1)
            flat = [torch.cat([part[error].flatten() for error in B]) for part in (B, J)]
            assert found.cosine_feedback == pytest.approx(float(F.cosine_similarity(*flat, dim=0)), abs=1e-12)
